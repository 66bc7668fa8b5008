"""Out of memory is one message with its fix, or the same steps of smaller batches."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_training
from trl import SFTTrainer

from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.store import TrainingData, load_training_data
from training_core.distributed import train_adapter
from training_core.packing.plan import collate_pack
from training_core.training.finite import lines_of
from training_core.training.out_of_memory import explain_out_of_memory, halved_batches


@pytest.fixture
def config(tiny_base: Path, sample_rows: Path, tmp_path: Path) -> RunConfig:
    limits = {"max_steps": 3, "max_seq_length": 1600, "max_eval_rows": 2, "save_steps": 1, "lora_dropout": 0.0}
    return tiny_training(tiny_base, sample_rows, tmp_path, gradient_accumulation_steps=2, eval_steps=3, **limits)


@pytest.fixture
def data(config: RunConfig) -> TrainingData:
    return load_training_data(prepare_data(config, Path(config.model_name)))


def failing(batches: range) -> Callable[..., Any]:
    """The trainer's step, which runs out of memory at batches with these numbers."""
    numbers, step = itertools.count(), SFTTrainer.training_step

    def training_step(*given: Any, **named: Any) -> Any:
        if next(numbers) in batches:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return step(*given, **named)

    return training_step


@pytest.mark.slow
def test_out_of_memory_stops_with_its_fix(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SFTTrainer, "training_step", failing(range(9)))
    rows = prepare_data(config, Path(config.model_name))
    fix = r"memory: a step does not fit .*out of memory\); set per_device_train_batch_size 1 and gradient_accum"
    with pytest.raises(SettingsError, match=fix):
        train_adapter(config, rows, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_training_with_halved_batches_ends_with_the_same_adapter(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, packing: bool
) -> None:
    config = replace(config, on_out_of_memory="halve", packing=packing)
    rows = prepare_data(config, Path(config.model_name))
    train_adapter(config, rows, tmp_path / "whole")
    monkeypatch.setattr(SFTTrainer, "training_step", failing(range(4, 5)))  # in the third step, or a later one
    with caplog.at_level(logging.WARNING, "training_core"):
        summary = train_adapter(config, rows, tmp_path / "halved")
    assert "goes on with 1/2 of the tokens per batch" in caplog.text
    assert summary.resumed_from_step > 0
    whole, halved = (load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("whole", "halved"))
    for name, weight in whole.items():
        torch.testing.assert_close(halved[name], weight, rtol=1e-3, atol=1e-4)


def steps_of(data: TrainingData, config: RunConfig, halvings: int) -> tuple[list[list[int]], int]:
    """The lines of the rows of each step, and the tokens of the largest batch."""
    _, batches = halved_batches(data, config, 1, halvings)
    size = batches.steps.batch_size * batches.steps.accumulation
    found = [lines_of(collate_pack([pack]), data.train) for pack in batches.train_order]
    steps = [sorted(itertools.chain(*found[at : at + size])) for at in range(0, len(found), size)]
    return steps, batches.train.tokens_at_most


def test_halved_batches_keep_the_rows_of_each_step(config: RunConfig, data: TrainingData) -> None:
    config = replace(config, per_device_train_batch_size=4)
    whole, tokens = steps_of(data, config, 0)
    halved, fewer = steps_of(data, config, 1)
    assert halved == whole
    assert fewer < 0.7 * tokens


@pytest.mark.parametrize("packing", [True, False])
def test_batch_of_one_row_is_not_halved_again(config: RunConfig, data: TrainingData, packing: bool) -> None:
    with pytest.raises(SettingsError, match=r"max_seq_length: a batch of .* cannot be divided"):
        for halvings in range(1, 20):
            halved_batches(data, replace(config, packing=packing), 1, halvings)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_out_of_memory_past_the_allocator_is_explained_too(words: str) -> None:
    message = r"memory: a step does not fit on the GPU \([^\n]+\); fewer rows$"
    with pytest.raises(SettingsError, match=message), explain_out_of_memory("a step", "fewer rows"):
        raise RuntimeError(words)


@pytest.mark.parametrize("words", ["device-side assert triggered", "out of resource: shared memory, Required: 204800"])
def test_other_errors_of_a_gpu_stay_what_they_are(words: str) -> None:
    with pytest.raises(RuntimeError, match=words), explain_out_of_memory("a step", "fewer rows"):
        raise RuntimeError(words)
