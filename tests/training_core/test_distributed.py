"""Training on several devices equals training on one: the same rows in every step, the same curve, one folder."""

import dataclasses
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_training

from training_core import distributed
from training_core.base_model import PROJECT
from training_core.child_processes import child_process
from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.distributed import train_adapter, train_on_devices
from training_core.trainer import TrainingSummary, load_summary
from training_core.training.checkpoints import latest_complete_checkpoint
from training_core.training.journal import read_journal


@pytest.fixture
def config(tiny_base: Path, sample_rows: Path, tmp_path: Path) -> RunConfig:
    return tiny_training(
        tiny_base,
        sample_rows,
        tmp_path,
        max_steps=3,
        max_seq_length=1600,
        gradient_accumulation_steps=7,
        gradient_checkpointing=False,
        lora_dropout=0.0,
        max_eval_rows=3,
        save_steps=1,
        logging_steps=1,
        eval_steps=2,
    )


def train(config: RunConfig, run_dir: Path, devices: int) -> tuple[torch.Tensor, TrainingSummary]:
    """The weights of the adapter, and the summary."""
    rows = prepare_data(config, Path(config.model_name))
    if devices == 1:
        train_adapter(config, rows, run_dir)  # in this process
    else:
        train_on_devices(config, rows, run_dir, devices)
    weights = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)]), load_summary(run_dir)


def curve(run_dir: Path) -> dict[tuple[int, str], float]:
    """Losses by step and name; each point once."""
    points = [(point.step, name) for point in read_journal(run_dir / "journal.jsonl") for name in point.values]
    assert len(points) == len(set(points))
    return {
        (point.step, name): value
        for point in read_journal(run_dir / "journal.jsonl")
        for name, value in point.values.items()
        if name in ("loss", "eval_loss", "grad_norm")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("packing", "batches"), [(True, 7), (False, 3)])
def test_distributed_training_equals_that_on_one_device(
    config: RunConfig, tmp_path: Path, packing: bool, batches: int
) -> None:
    """Three packs, three batches of rows: one of the two processes has one less."""
    layout = {"packing": packing, "gradient_accumulation_steps": batches, "per_device_eval_batch_size": 2}
    config = RunConfig(**vars(config) | layout)
    alone, _ = train(config, tmp_path / "one", 1)
    together, summary = train(config, tmp_path / "two", 2)
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-5)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    assert (summary.steps, summary.resumed_from_step) == (3, 0)
    assert latest_complete_checkpoint(tmp_path / "two" / "checkpoints") == tmp_path / "two/checkpoints/checkpoint-3"


@pytest.mark.slow
def test_distributed_training_survives_the_kill_of_any_process(config: RunConfig, tmp_path: Path) -> None:
    config = RunConfig(**vars(config) | {"max_steps": 12, "gradient_accumulation_steps": 2})
    train(config, tmp_path / "one", 1)
    rows, run_dir = prepare_data(config, Path(config.model_name)), tmp_path / "two"
    for victim in ("caller", "launcher", "rank"):
        steps_before = last_step(run_dir)  # a process may take another step while it is being ended
        caller = start(config, rows, run_dir)
        while last_step(run_dir) <= steps_before:
            assert caller.is_running() and caller.status() != psutil.STATUS_ZOMBIE
            time.sleep(0.05)
        (launcher,) = caller.children()
        first_rank, second_rank = launcher.children()
        {"caller": caller, "launcher": launcher, "rank": second_rank}[victim].kill()
        _, left = psutil.wait_procs([launcher, first_rank, second_rank], timeout=20)
        assert not left
        assert caller.wait(timeout=120) != 0  # unloading the libraries takes a while
        assert last_step(run_dir) < 12
    _, summary = train(config, run_dir, 1)
    assert summary.resumed_from_step >= 2
    assert curve(run_dir) == pytest.approx(curve(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_sharded_training_survives_a_kill_and_equals_a_whole_one(config: RunConfig, tmp_path: Path) -> None:
    """The whole base trains in one process, the sharded one in two, of which the second is killed."""
    config = RunConfig(
        **vars(config) | {"max_steps": 4, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    )
    alone, _ = train(config, tmp_path / "one", 1)
    config = dataclasses.replace(config, sharding="fsdp")
    unbroken, _ = train(config, tmp_path / "two", 2)
    killed = tmp_path / "killed"
    errors = tmp_path / "errors"
    with errors.open("w") as log:
        caller = start(config, prepare_data(config, Path(config.model_name)), killed, log)
    while last_step(killed) < 2:
        assert caller.is_running() and caller.status() != psutil.STATUS_ZOMBIE
        time.sleep(0.05)
    caller.children()[0].children()[1].kill()
    assert caller.wait(timeout=120) != 0
    _, _, first_failure = errors.read_text().partition("Root Cause (first observed failure)")
    assert "rank      : 1" in first_failure and "Signal 9 (SIGKILL)" in first_failure
    resumed, summary = train(config, killed, 2)
    assert 1 <= summary.resumed_from_step < 4
    assert torch.equal(resumed, unbroken)
    torch.testing.assert_close(unbroken, alone, rtol=1e-3, atol=1e-4)
    assert curve(killed) == curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-5)
    assert files_of(killed / "adapter") == files_of(tmp_path / "one" / "adapter")


def files_of(adapter: Path) -> dict[str, list[str]]:
    """The names of an adapter's files, and of its tensors."""
    tensors = sorted(load_file(adapter / "adapter_model.safetensors"))
    return {"files": sorted(path.name for path in adapter.iterdir()), "tensors": tensors}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_training_in_processes_names_what_stopped_it(config: RunConfig, tmp_path: Path, devices: int) -> None:
    """Not as the log of a process: as the error that a training in this process raises."""
    config = RunConfig(**vars(config) | {"learning_rate": 1e30, "warmup_ratio": 0})
    rows = prepare_data(config, Path(config.model_name))
    with pytest.raises(SettingsError, match="not finite at step 1 of 3"):
        train_on_devices(config, rows, tmp_path / "run", devices)
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.slow
def test_training_on_one_gpu_has_its_own_process(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process stands in for one that sees a GPU; the one that it starts does not."""
    train(config, tmp_path / "here", 1)
    rows = prepare_data(config, Path(config.model_name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed, "load_model_and_tokenizer", None)  # no model is loaded in this process
    assert train_adapter(config, rows, tmp_path / "apart").steps == 3
    here, apart = (tmp_path / run / "adapter/adapter_model.safetensors" for run in ("here", "apart"))
    assert apart.read_bytes() == here.read_bytes()


# Writes more than a pipe holds before its checkpoint.
SLOW_TO_END = """
import signal, sys

def save(*_):
    print("x" * 1_000_000)
    print("a checkpoint is saved", flush=True)
    sys.exit(1)

signal.signal(signal.SIGTERM, save)
print("training", flush=True)
while True:
    signal.pause()
"""


def test_interrupted_caller_logs_how_its_training_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stand-in trains; this process gets Ctrl-C as soon as it logs."""
    (tmp_path / "slow_to_end.py").write_text(SLOW_TO_END)
    stand_in = functools.partial(child_process, ["slow_to_end"], {"PYTHONPATH": f"{tmp_path}:{PROJECT}"})
    monkeypatch.setattr(distributed, "child_process", lambda _, **options: stand_in(**options))
    caplog.set_level(logging.INFO, distributed.__name__)
    caplog.handler.addFilter(lambda record: record.getMessage() != "training" or interrupt())
    with pytest.raises(KeyboardInterrupt):
        train_on_devices(RunConfig(), tmp_path, tmp_path / "run", 1)
    assert caplog.messages[-1] == "a checkpoint is saved"


def interrupt() -> bool:
    os.kill(os.getpid(), signal.SIGINT)
    return True


def start(config: RunConfig, rows: Path, run_dir: Path, errors: Any = subprocess.DEVNULL) -> psutil.Popen:
    """A process that trains in two others, and writes its errors to this file."""
    settings = json.dumps(dataclasses.asdict(config))
    program = (
        "import json, pathlib, sys; from training_core.config import read_settings; "
        "from training_core.distributed import train_on_devices; settings, rows, run_dir = sys.argv[1:]; "
        "train_on_devices(read_settings(json.loads(settings)), pathlib.Path(rows), pathlib.Path(run_dir), 2)"
    )
    return psutil.Popen([sys.executable, "-c", program, settings, str(rows), str(run_dir)], stderr=errors)


def last_step(run_dir: Path) -> int:
    return max((point.step for point in read_journal(run_dir / "journal.jsonl")), default=0)
