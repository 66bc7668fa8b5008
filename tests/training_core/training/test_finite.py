"""A training whose numbers are not finite stops within a step, names it and its rows, and leaves no adapter."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tiny_models import tiny_training
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.store import TrainingData, load_training_data
from training_core.distributed import train_adapter
from training_core.model_setup import load_model_and_tokenizer
from training_core.packing.batches import make_batches
from training_core.packing.plan import collate_pack
from training_core.training.finite import SKIPPED_AT_MOST, RequireFinite, lines_of

INF = float("inf")
FP32, FP16 = SimpleNamespace(fp16=False), SimpleNamespace(fp16=True)


@pytest.fixture
def config(tiny_base: Path, sample_rows: Path, tmp_path: Path) -> RunConfig:
    limits = {"max_steps": 3, "gradient_accumulation_steps": 1, "max_eval_rows": 4, "eval_max_new_tokens": 2}
    return tiny_training(tiny_base, sample_rows, tmp_path, warmup_ratio=0, **limits)


@pytest.mark.slow
def test_exploding_training_stops_at_its_step_without_an_adapter(config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, learning_rate=1e30)
    rows = prepare_data(config, Path(config.model_name))
    with pytest.raises(SettingsError, match=r"not finite at step 1 of 3 \(rows of lines \d+.*\); lower learning_rate"):
        train_adapter(config, rows, tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"adapter", "training.json"}
    assert not list((tmp_path / "run" / "checkpoints").glob("*/manifest.json"))


class Head(nn.Module):
    """A model of one weight whose loss is that weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, **_: Any) -> dict[str, torch.Tensor]:
        return {"log_probs": self.weight * 1.0}


@pytest.fixture
def head() -> Head:
    return Head()


@pytest.fixture
def check(head: Head, tiny_base: Path) -> RequireFinite:
    return RequireFinite(head, Dataset.from_dict({"input_ids": [[1, 2], [1, 3]], "line": [7, 8]}), tiny_base)


def step(
    head: Head, check: RequireFinite, arguments: Any, *, loss: float = 0, gradient: float = 0, weight: float = 0
) -> None:
    """One optimiser step with these numbers."""
    state, parameter = TrainerState(max_steps=9, global_step=4), head.weight
    check.on_step_begin(arguments, state, TrainerControl())
    parameter.data.fill_(loss)
    head(input_ids=torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 2))
    parameter.grad = torch.full_like(parameter, gradient)
    check.on_pre_optimizer_step(arguments, state, TrainerControl())
    parameter.data.fill_(weight)
    check.on_step_end(arguments, TrainerState(max_steps=9, global_step=5), TrainerControl())


@pytest.mark.parametrize("value", [INF, -INF, float("nan")])
@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
def test_number_that_is_not_finite_names_step_and_rows(
    head: Head, check: RequireFinite, what: str, value: float
) -> None:
    step(head, check, FP32)
    with pytest.raises(SettingsError, match=rf"{what}.* not finite at step 5 of 9 \(rows of lines 7\)"):
        step(head, check, FP32, **{what: value})


def test_held_out_loss_that_is_not_finite_stops_the_training(check: RequireFinite, tmp_path: Path) -> None:
    arguments, state, control = TrainingArguments(str(tmp_path)), TrainerState(max_steps=9), TrainerControl()
    check.on_evaluate(arguments, state, control, metrics={"eval_loss": 1.0})
    with pytest.raises(SettingsError, match="held-out loss"):
        check.on_evaluate(arguments, state, control, metrics={"eval_loss": float("nan")})


def test_loss_scaler_may_skip_steps_but_not_all(head: Head, check: RequireFinite) -> None:
    for _ in range(2):
        for _ in range(SKIPPED_AT_MOST - 1):
            step(head, check, FP16, gradient=INF)
        step(head, check, FP16, gradient=1)
    with pytest.raises(SettingsError, match="gradient"):
        for _ in range(SKIPPED_AT_MOST):
            step(head, check, FP16, gradient=INF)


@pytest.mark.parametrize("value", [INF, float("nan")])
def test_weight_of_the_base_that_is_not_finite_is_named_as_the_cause(
    head: Head, check: RequireFinite, tiny_base: Path, tmp_path: Path, value: float
) -> None:
    check.base = shutil.copytree(tiny_base, tmp_path / "base")
    weights = load_file(tiny_base / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, check.base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=r"at step 5 of 9 .*; nor is model\.norm\.weight in the base .*/base'"):
        step(head, check, FP32, loss=INF)


@pytest.fixture
def data(config: RunConfig) -> TrainingData:
    return load_training_data(prepare_data(config, Path(config.model_name)))


def test_rows_of_a_pack_are_found_by_their_lines(config: RunConfig, data: TrainingData) -> None:
    packs = make_batches(data.train, data.held_out, config).train.content
    found = [lines_of(collate_pack([pack]), data.train) for pack in packs]
    assert sorted(line for lines in found for line in lines) == sorted(data.train["line"])


def test_rows_of_a_padded_batch_are_found_by_their_lines(config: RunConfig, data: TrainingData) -> None:
    tokenizer = load_model_and_tokenizer(config).tokenizer
    first = data.train.select_columns(["input_ids"])[:3]
    assert lines_of(tokenizer.pad(first, return_tensors="pt"), data.train) == data.train["line"][:3]
