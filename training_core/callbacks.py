"""What happens beside the steps of a training: checkpoints are sealed, the curve is written down."""

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training_core.checkpoints import seal
from training_core.journal import Point, append_point, mend_journal

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
    """Declares each checkpoint complete once all processes have written their files of it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class KeepJournal(TrainerCallback):
    """Writes the loss curve to the journal, each point once however often its step is repeated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: set[tuple[int, str]] = set()
        self.started = (0.0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.known = {(point.step, name) for point in mend_journal(self.path) for name in point.values}
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
            if name in _CURVE and (state.global_step, name) not in self.known
        }
        if new:
            append_point(self.path, Point(state.global_step, state.max_steps, time.time(), new))
            logger.info(
                "Step %d of %d: %s, %s left",
                state.global_step,
                state.max_steps,
                _show(new),
                self._left(state),
            )

    def _left(self, state: TrainerState) -> timedelta:
        started_at, started_step = self.started
        done = max(1, state.global_step - started_step)
        seconds = (time.monotonic() - started_at) / done * (state.max_steps - state.global_step)
        return timedelta(seconds=round(seconds))


def _show(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if "loss" in name or "accuracy" in name)
