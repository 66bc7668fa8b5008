"""How much two sets of rows have in common is told from their samples alone."""

import numpy as np
import pytest

from training_core.dataset.row_sample import sample_rows, share_seen


def digests(count: int, seed: int = 1) -> list[int]:
    return [int(one) for one in np.random.default_rng(seed).integers(0, 2**64, count, np.uint64, endpoint=False)]


@pytest.mark.parametrize(("kept", "share"), [(0, 0.0), (50, 0.25), (100, 0.5), (200, 1.0)])
def test_share_of_small_sets_is_exact(kept: int, share: float) -> None:
    earlier, new = digests(200), digests(200, seed=2)
    present = earlier[:kept] + new[kept:]
    assert share_seen(sample_rows(present), sample_rows(earlier)) == share


@pytest.mark.parametrize("kept", [0, 1_000, 2_500, 5_000])
def test_share_of_large_sets_is_close(kept: int) -> None:
    earlier, new = digests(5_000), digests(5_000, seed=2)
    present = earlier[:kept] + new[kept:]
    assert share_seen(sample_rows(present), sample_rows(earlier)) == pytest.approx(kept / 5_000, abs=0.1)


def test_share_is_that_of_the_present_rows() -> None:
    """A new set within a larger earlier one was seen entirely; the larger one, seen by the smaller, in part."""
    large = digests(250)
    assert share_seen(sample_rows(large[:50]), sample_rows(large)) == 1
    assert share_seen(sample_rows(large), sample_rows(large[:50])) == 0.2


def test_sample_of_rows_has_no_order_and_is_short() -> None:
    rows = digests(3_000)
    assert sample_rows(rows) == sample_rows(rows[::-1])
    assert len(sample_rows(rows)) == 1_368
    assert share_seen(sample_rows([]), sample_rows(rows)) == 0
