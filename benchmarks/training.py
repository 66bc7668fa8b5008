"""One training in a process of its own, timed from optimiser step to optimiser step, with its held-out loss."""

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.rows import IGNORED, RowSet

SEED = 0
LEARNING_RATE = 1e-3
LORA_R, LORA_ALPHA, LORA_DROPOUT = 16, 32, 0.0


@dataclass(frozen=True)
class Job:
    """What to train on: a base model's folder, the rows of every step, the number of steps, a folder to write in.

    Every step takes all rows, so neither their order nor how they are put into batches can change a step's gradient.
    """

    base: Path
    rows: RowSet
    vocabulary: int
    steps: int
    run_dir: Path
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Outcome:
    """Time, memory and held-out loss of a training. The times leave out the first step, but for those of the start.

    `row_tokens` counts every row in full in every step (tokens before sharing), `computed_tokens` what the model
    computed for that. `start` is from the start of the process to the end of the first step.
    """

    row_tokens: int
    computed_tokens: int
    cpu_seconds: float
    wall_seconds: float
    start_cpu_seconds: float
    start_wall_seconds: float
    peak_memory_mb: float
    held_out_loss: float


# Trains, and returns the model and the tokens computed in one step.
Trainer = Callable[[Job], tuple[PeftModel, int]]


def run_alone(trainer: Trainer, job: Job, context: BaseContext) -> Outcome:
    """Train in a new process, so that memory and caches are of this training alone."""
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(run_here, trainer, job, time.time()).result()


def run_here(trainer: Trainer, job: Job, process_start: float = 0.0) -> Outcome:
    """Train in this process, and measure."""
    laps: list[tuple[float, float]] = []

    def end_of_step(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        laps.append((time.process_time(), time.time()))

    watch = register_optimizer_step_post_hook(end_of_step)
    model, computed = trainer(job)
    watch.remove()
    (start_cpu, start_wall), (cpu, wall) = laps[0], laps[-1]
    assert len(laps) == job.steps, f"expected {job.steps} optimiser steps, got {len(laps)}"
    lengths = map(len, job.rows.make(job.vocabulary)["input_ids"])
    return Outcome(
        row_tokens=sum(lengths) * (job.steps - 1),
        computed_tokens=computed * (job.steps - 1),
        cpu_seconds=cpu - start_cpu,
        wall_seconds=wall - start_wall,
        start_cpu_seconds=start_cpu,
        start_wall_seconds=start_wall - process_start,
        peak_memory_mb=_peak_memory_mb(),
        held_out_loss=held_out_loss(model, job),
    )


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def lora() -> LoraConfig:
    """The adapter: on every linear layer but the head."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        r=LORA_R,
        lora_alpha=LORA_ALPHA,
        lora_dropout=LORA_DROPOUT,
    )


def held_out_loss(model: PeftModel, job: Job) -> float:
    """Mean loss of two held-out rows, one at a time, in training mode: there bitsandbytes does not repack weights."""
    rows = RowSet(job.rows.policy_tokens, 1, 2).make(job.vocabulary, seed=1).with_format("torch", device=model.device)
    with torch.no_grad():
        losses = [row_loss(model, row["input_ids"], row["labels"]) for row in rows]
    return torch.stack(losses).mean().item()


def row_loss(model: PeftModel, ids: Tensor, labels: Tensor) -> Tensor:
    """The mean loss over the labels of one row; logits are computed for labelled tokens only."""
    base = model.get_base_model()
    predicts = labels[1:] != IGNORED
    hidden = base.model(ids[None], use_cache=False).last_hidden_state[0, :-1][predicts]
    return cross_entropy(base.lm_head(hidden).float(), labels[1:][predicts])
