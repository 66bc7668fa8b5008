"""Every class of base that settings may name is trained, resumed and reloaded with the same answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packed_training import packed, random_rows, relative_error, train_apart, train_packed
from tiny_models import SIZES, tiny_model, tiny_multimodal_model, tiny_training, write_base
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from training_core.base_model import adapted_layers
from training_core.config import RunConfig
from training_core.data_loader import prepare_data
from training_core.dataset.store import TrainingData, load_training_data
from training_core.evaluation.generation import generate, logit_gap
from training_core.evaluation.scores import prompt_of
from training_core.model_setup import LoadedModel, load_adapted_model, load_model_and_tokenizer
from training_core.trainer import train_model
from training_core.training.adapter import write_adapter
from training_core.utils import validate_args

VOCABULARY = 1000
SLIDING = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "multimodal":
        return tiny_multimodal_model(vocab_size=VOCABULARY)
    if name == "sliding":
        return tiny_model("qwen2", vocab_size=VOCABULARY, **SLIDING)
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=VOCABULARY))
    return tiny_model(name, vocab_size=VOCABULARY)


def settings(name: str, tokenizer_of: Path, rows: Path, folder: Path, **more: Any) -> RunConfig:
    write_base(build(name), tokenizer_of, folder / "base")
    config = tiny_training(
        folder / "base",
        rows,
        folder,
        max_steps=4,
        gradient_accumulation_steps=2,
        eval_max_new_tokens=6,
        packing=name not in ("sliding", "llama"),
        target_modules="auto"
        if name != "qwen3_next"
        else "in_proj_qkvz,in_proj_ba,out_proj,q_proj,k_proj,v_proj,o_proj",
        **more,
    )
    validate_args(config)
    return config


def lora(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in loaded.model.named_parameters() if "lora_" in name}


def answers(loaded: LoadedModel, data: TrainingData, config: RunConfig) -> list[list[int]]:
    prompts = [prompt_of(row) for row in data.held_out.select(range(6))]
    completions = generate(loaded, prompts, config)
    gaps = [logit_gap(loaded, *pair) for pair in zip(prompts, completions, strict=True)]
    assert max(gaps) < 1e-4  # they are the model's own, without a shared prefix
    return completions


def formats(loaded: LoadedModel) -> set[torch.dtype]:
    return {weight.dtype for weight in loaded.model.parameters()}


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        *((name, "nf4") for name in ("qwen3_5", "multimodal", "sliding", "llama")),
        *((name, "none") for name in ("qwen2", "qwen3_5", "multimodal")),
    ],
)
def test_base_is_trained_resumed_and_reloaded_alike(
    name: str, quantisation: str, tiny_base: Path, sample_rows: Path, tmp_path: Path
) -> None:
    config = settings(name, tiny_base, sample_rows, tmp_path, quantisation=quantisation)
    data = load_training_data(prepare_data(config, tmp_path / "base"))
    whole, resumed = load_model_and_tokenizer(config), load_model_and_tokenizer(config)
    before = lora(whole)
    assert len(before) == 2 * len(adapted_layers(config, tmp_path / "base"))
    train_model(whole, data, config, tmp_path / "run")
    after = lora(whole)
    assert [layer for layer, weight in after.items() if torch.equal(weight, before[layer])] == []
    for later in (tmp_path / "run" / "checkpoints").glob("checkpoint-[34]"):
        (later / "manifest.json").unlink()  # as if the process had died while it was written
    assert train_model(resumed, data, config, tmp_path / "run").resumed_from_step == 2
    assert all(torch.equal(weight, after[layer]) for layer, weight in lora(resumed).items())
    write_adapter(whole.model, whole.tokenizer, config, data.leakage_keys, tmp_path / "adapter")
    reloaded = load_adapted_model(tmp_path / "base", tmp_path / "adapter")
    assert formats(reloaded) == formats(whole) == {torch.float32, *([torch.uint8] if quantisation == "nf4" else [])}
    assert answers(reloaded, data, config) == answers(whole, data, config)


@pytest.mark.parametrize("name", ["qwen2", "qwen3_5"])
def test_packs_on_an_unquantised_base_have_the_exact_gradient(
    name: str, tiny_base: Path, sample_rows: Path, tmp_path: Path
) -> None:
    config = settings(name, tiny_base, sample_rows, tmp_path, quantisation="none", lora_dropout=0)
    model = load_model_and_tokenizer(config).model
    for layer, weight in model.named_parameters():
        if "lora_B" in layer:
            torch.nn.init.normal_(weight, std=0.1)
    rows = random_rows(0)
    apart, together = train_apart(model, rows)[1], train_packed(model, packed(rows))[1]
    assert relative_error(together, apart) < 1e-5
