"""What a base cannot do is said from its config.json, before any weight is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SIZES, tiny_model, tiny_multimodal_model
from torch import Tensor
from transformers import (
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from training_core.base_support import support_problems
from training_core.base_weights import WHOLE
from training_core.config import RunConfig

MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "vocab_size": 64}
SHARED: dict[str, Any] = MOE | {"shared_expert_intermediate_size": 8}


def problems_of(base: PreTrainedConfig, folder: Path, **settings: Any) -> list[str]:
    base.save_pretrained(folder)
    return support_problems(RunConfig(model_name="some/base", **settings), folder)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3_5"])
def test_dense_qwen_with_full_attention_or_deltanet_is_supported(architecture: str, tmp_path: Path) -> None:
    assert problems_of(tiny_model(architecture, vocab_size=64).config, tmp_path) == []


def test_text_part_of_a_multimodal_qwen_is_supported(tmp_path: Path) -> None:
    assert problems_of(tiny_multimodal_model(vocab_size=64).config, tmp_path) == []


@pytest.mark.parametrize(
    "base",
    [Qwen3MoeConfig(**SIZES, **MOE), Qwen3NextConfig(**SIZES, **SHARED), Qwen3_5MoeTextConfig(**SIZES, **SHARED)],
)
def test_mixtures_of_experts_are_rejected(base: PreTrainedConfig, tmp_path: Path) -> None:
    (problem,) = problems_of(base, tmp_path)
    assert problem.startswith("model_name: 'some/base' is a mixture of experts")
    assert problem.endswith("give a dense model: Qwen2.5, Qwen3 or Qwen3.5")


def test_dense_model_that_libraries_take_for_a_mixture_is_rejected(tmp_path: Path) -> None:
    (problem,) = problems_of(tiny_model("qwen3_next", vocab_size=64).config, tmp_path)
    assert "is a mixture of experts or taken for one (qwen3_next)" in problem


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_quantised_bases_are_rejected(method: str, tmp_path: Path) -> None:
    base = tiny_model("qwen3", vocab_size=64).config
    base.quantization_config = {"quant_method": method, "bits": 4}
    (problem,) = problems_of(base, tmp_path)
    assert problem.startswith(f"model_name: 'some/base' is quantised already ({method})")


@pytest.mark.parametrize(
    ("base", "found"),
    [
        (Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding_attention"),
        (LlamaConfig(**SIZES), "unknown"),
    ],
)
def test_other_attention_trains_without_packing_only(base: PreTrainedConfig, found: str, tmp_path: Path) -> None:
    (problem,) = problems_of(base, tmp_path)
    assert problem.startswith("packing: rows share a prefix through full attention and gated DeltaNet, but ")
    assert f"has {found}; set packing false" in problem
    assert problems_of(base, tmp_path, packing=False) == []


def test_rows_longer_than_the_positions_are_rejected(tmp_path: Path) -> None:
    base = tiny_model("qwen2", vocab_size=64, max_position_embeddings=512).config
    (problem,) = problems_of(base, tmp_path, max_seq_length=1024)
    assert problem.startswith("max_seq_length: 1,024 is more than the 512 positions of 'some/base'; set it to 512")
    assert problems_of(base, tmp_path, max_seq_length=512) == []


def test_scaled_rotation_counts_its_scaled_positions(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 1e6}
    base = tiny_model("qwen2", vocab_size=64, max_position_embeddings=512, rope_parameters=yarn).config
    assert problems_of(base, tmp_path, max_seq_length=2048) == []
    assert len(problems_of(base, tmp_path, max_seq_length=2049)) == 1


def test_all_problems_of_a_base_are_told_at_once(tmp_path: Path) -> None:
    base = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    base.max_position_embeddings = 256
    base.quantization_config = {"quant_method": "gptq", "bits": 4}
    found = [problem.partition(":")[0] for problem in problems_of(base, tmp_path)]
    assert found == ["model_name", "packing", "max_seq_length"]


def write_with(model: PreTrainedModel, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """A base whose weights were changed after they were saved."""
    model.save_pretrained(folder)
    save_file(change(load_file(folder / WHOLE)), folder / WHOLE, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3_5"])
def test_weights_as_saved_are_those_of_the_config(architecture: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(architecture, vocab_size=64, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert problems_of(model.config, tmp_path) == []


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_a_multimodal_base_are_those_of_the_config(tied: bool, tmp_path: Path) -> None:
    model = tiny_multimodal_model(vocab_size=64, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert problems_of(model.config, tmp_path) == []


Weights = dict[str, Tensor]
CHANGES: list[tuple[Callable[[str, Tensor], Weights], str]] = [
    (lambda name, weight: {} if "layers.1" in name else {name: weight}, "layers.1.input_layernorm.weight and 10 more"),
    (lambda name, weight: {} if name == "lm_head.weight" else {name: weight}, "lack lm_head.weight; "),
    (
        lambda name, weight: {name: weight[:-1] if name == "model.norm.weight" else weight},
        "have model.norm.weight in an",
    ),
    (lambda name, weight: {name: weight} | ({f"{name}.s": weight[:1]} if "q_proj" in name else {}), "1 more, which it"),
    (lambda name, weight: {f"base_model.{name}": weight}, "lack lm_head.weight and 24 more; have base_model."),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_weights_that_are_not_those_of_the_config_are_rejected(
    change: Callable[[str, Tensor], Weights], words: str, tmp_path: Path
) -> None:
    model = tiny_model("qwen3", vocab_size=64, tie_word_embeddings=False)
    changed = lambda found: {n: w.clone() for pair in found.items() for n, w in change(*pair).items()}  # noqa: E731
    write_with(model, tmp_path, changed)
    (problem,) = problems_of(model.config, tmp_path)
    assert problem.startswith("model_name: compared with its config.json, the weights of 'some/base' ")
    assert words in problem
    assert problem.endswith("; give a base whose files are all of one model")


EXTRA = {
    "a head": ("v_head.summary.weight", True),
    "a classifier": ("score.weight", True),
    "prediction of further tokens": ("mtp.layers.0.input_layernorm.weight", True),
    "a rotation": ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
    "eyes": ("model.visual.merger.weight", True),
    "a bias": ("model.layers.0.self_attn.o_proj.bias", False),
    "a bias of the head": ("lm_head.bias", False),
    "a further layer": ("model.layers.9.input_layernorm.weight", False),
    "a part of a layer": ("model.layers.0.adapter.weight", False),
    "a bias without the prefix": ("layers.0.self_attn.o_proj.bias", False),
}


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3_5"])
@pytest.mark.parametrize(("name", "taken"), EXTRA.values(), ids=EXTRA)
def test_further_weights_are_rejected_only_inside_the_layers_of_the_config(
    architecture: str, name: str, taken: bool, tmp_path: Path
) -> None:
    model = tiny_model(architecture, vocab_size=64, tie_word_embeddings=False)
    write_with(model, tmp_path, lambda found: found | {name: torch.zeros(3)})
    problems = problems_of(model.config, tmp_path)
    assert [f"have {name}, which it does not name" in problem for problem in problems] == ([] if taken else [True])


@pytest.mark.parametrize("name", ["layers.9.input_layernorm.weight", "layers.0.mlp.up_proj.bias"])
def test_further_weights_inside_the_layers_of_a_multimodal_base_are_rejected(name: str, tmp_path: Path) -> None:
    model = tiny_multimodal_model(vocab_size=64)
    write_with(model, tmp_path, lambda found: found | {f"model.language_model.{name}": torch.zeros(3)})
    (problem,) = problems_of(model.config, tmp_path)
    assert f"have model.{name}, which it does not name" in problem


def test_report_of_transformers_on_the_weights_is_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("qwen3", vocab_size=64)
    write_with(model, tmp_path, lambda found: {name: found[name] for name in found if "norm" not in name})
    capfd.readouterr()
    assert problems_of(model.config, tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_weights_in_a_quantised_format_are_rejected_without_a_word_in_the_config(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_model("qwen3", vocab_size=64)
    write_with(model, tmp_path, lambda found: {n: w.to(dtype) if "proj" in n else w for n, w in found.items()})
    (problem,) = problems_of(model.config, tmp_path)
    assert problem.startswith("model_name: 'some/base' is quantised already (")


def test_empty_word_on_quantisation_is_rejected_as_transformers_does(tmp_path: Path) -> None:
    base = tiny_model("qwen3", vocab_size=64).config
    base.quantization_config = {}
    (problem,) = problems_of(base, tmp_path)
    assert "is quantised already (unknown)" in problem
