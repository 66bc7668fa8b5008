"""Callbacks of the trainer: they seal checkpoints and write the loss curve."""

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training_core.folders import seal
from training_core.training.checkpoints import delete_oldest
from training_core.training.journal import Point, append_point, mend_journal
from training_core.training.memory import peak_memory_gib

logger = logging.getLogger(__name__)

_CURVE = (
    "loss",
    "eval_loss",
    "learning_rate",
    "grad_norm",
    "mean_token_accuracy",
    "eval_mean_token_accuracy",
)


class SealCheckpoints(TrainerCallback):
    """Seals each checkpoint once all processes have written their files, then deletes those beyond ``keep``.

    The trainer's own deletion goes by the times of files, and before the new checkpoint is complete.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            delete_oldest(Path(args.output_dir), self.keep)


class KeepJournal(TrainerCallback):
    """Writes the loss curve to the journal, each point once, even when a resumed training repeats its step.

    Each training loss is written with the cost of the steps since the last start: seconds per step, tokens before
    sharing per second, peak memory in GiB.
    """

    def __init__(self, path: Path, tokens_per_step: float) -> None:
        self.path = path
        self.tokens_per_step = tokens_per_step
        self.written: set[tuple[int, str]] = set()
        self.started = (0.0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.written = {(point.step, name) for point in mend_journal(self.path) for name in point.values}
        self.started = (time.monotonic(), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        new = {
            name: float(value)
            for name, value in (logs or {}).items()
            if name in _CURVE and (state.global_step, name) not in self.written
        }
        seconds = self._seconds_per_step(state)
        if "loss" in new:
            new["seconds_per_step"] = seconds
            new["tokens_per_second"] = self.tokens_per_step / seconds
            new["peak_memory_gib"] = peak_memory_gib()
        if new:
            append_point(self.path, Point(state.global_step, state.max_steps, time.time(), new))
            logger.info(
                "Step %d of %d: %s, %.0f tokens before sharing/s, %s left",
                state.global_step,
                state.max_steps,
                _losses(new),
                self.tokens_per_step / seconds,
                timedelta(seconds=round(seconds * (state.max_steps - state.global_step))),
            )

    def _seconds_per_step(self, state: TrainerState) -> float:
        started_at, started_step = self.started
        return (time.monotonic() - started_at) / max(1, state.global_step - started_step)


def _losses(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if "loss" in name or "accuracy" in name)
