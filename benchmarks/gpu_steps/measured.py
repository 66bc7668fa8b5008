"""A training by the product's parts with its forecast, its time per step and its peak of memory."""

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from torch.optim.optimizer import register_optimizer_step_post_hook
from trl import SFTTrainer

from training_core.config import RunConfig
from training_core.model_setup import LoadedModel
from training_core.packing.batches import make_batches
from training_core.trainer import create_trainer
from training_core.training.journal import read_journal
from training_core.training.memory import Forecast, measure_heaviest_batch, peak_memory_gib, require_memory

_NEVER = 1_000_000


@dataclass(frozen=True)
class Measured:
    """`tokens` and `computed_tokens` are a step's, before and after sharing; the time leaves out the first step."""

    forecast: Forecast
    forecast_seconds: float
    step_seconds: float
    peak_gib: float
    losses: list[float]
    tokens: float
    computed_tokens: float


def train_measured(loaded: LoadedModel, rows: Dataset, config: RunConfig, run_dir: Path) -> Measured:
    """Forecast and training as in `train_model`, but with neither evaluations nor checkpoints before the end."""
    batches = make_batches(rows, rows.select([0, 1]), config)
    run_dir.mkdir(parents=True)
    trainer = create_trainer(loaded, batches, config, run_dir)
    trainer.args.save_steps = trainer.args.eval_steps = _NEVER
    forecast = measure_heaviest_batch(trainer, batches, config)
    require_memory(forecast, config)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    laps = train_timed(trainer)
    journal = read_journal(run_dir / "journal.jsonl")
    return Measured(
        forecast,
        forecast.seconds / batches.steps.total,
        median(laps[1:]),
        peak_memory_gib(),
        [point.values["loss"] for point in journal if "loss" in point.values],
        batches.tokens_per_step,
        batches.train_tokens / batches.steps.total,
    )


def train_timed(trainer: SFTTrainer) -> list[float]:
    """Train, and return the seconds of each step."""
    ends = [time.perf_counter()]

    def end_of_step(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    watch = register_optimizer_step_post_hook(end_of_step)
    try:
        trainer.train()
    finally:
        watch.remove()
    return [end - start for start, end in pairwise(ends)]
