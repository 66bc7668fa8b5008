"""The benchmark of gated DeltaNet computes the same gradient in every way."""

import pytest
from tiny_models import tiny_model

from benchmarks.hybrid import compare
from benchmarks.rows import RowSet
from training_core.packing.attention import use_shared_prefix_attention


def test_ways_of_the_hybrid_benchmark_compute_one_gradient() -> None:
    model = tiny_model("qwen3_5", vocab_size=64)
    use_shared_prefix_attention(model)
    words = compare(model, RowSet(70, 3, 1).make(64))
    assert float(words.rpartition(" ")[2]) == pytest.approx(0, abs=1e-5)
