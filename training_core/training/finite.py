"""Stops a training within one step of the first loss, gradient or weight that is not a finite number."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training_core.base_weights import weights_not_finite
from training_core.config import SettingsError

# Each step that fp16's loss scaler skips halves the scale, which starts at 65,536: after so many it is 1.
SKIPPED_AT_MOST = 16

_ROWS_SHOWN = 8
_FIX = "lower learning_rate, lora_alpha or weight_decay, or look at these rows"


class RequireFinite(TrainerCallback):
    """Raises ``SettingsError`` with step and rows at the first loss, gradient or weight that is not finite.

    The files in ``base`` are read only then: with such a weight the base is to blame, and not rows or settings.

    A gradient is checked before the weights move, and weights before a checkpoint is saved. In fp16 the loss scaler
    skips steps whose gradient overflows; that is no error until ``SKIPPED_AT_MOST`` in a row.
    """

    def __init__(self, model: nn.Module, rows: Dataset, base: Path) -> None:
        self.rows, self.base = rows, base
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.batches: list[tuple[Mapping[str, Tensor], Tensor]] = []
        self.skipped = 0
        model.register_forward_hook(self._see_loss, with_kwargs=True)

    def _see_loss(self, model: nn.Module, _: tuple[Any, ...], inputs: Mapping[str, Tensor], output: Any) -> None:
        if model.training and output.get("log_probs") is not None:
            self.batches.append((inputs, output["log_probs"].isfinite().all()))  # read later: reading waits for the GPU

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.batches.clear()

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        diverged = [inputs for inputs, finite in self.batches if not finite]
        if diverged:
            raise self._problem("loss", state, diverged)
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        if _finite(gradients):
            self.skipped = 0
            return
        self.skipped += 1
        if not args.fp16 or self.skipped >= SKIPPED_AT_MOST:
            raise self._problem("gradient", state, [inputs for inputs, _ in self.batches])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not _finite(self.weights):
            raise self._problem("norm of the adapter's weights", state, [inputs for inputs, _ in self.batches])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **_: Any,
    ) -> None:
        if not math.isfinite(metrics.get("eval_loss", 0.0)):
            raise self._problem("held-out loss", state, [])

    def _problem(self, what: str, state: TrainerState, batches: list[Mapping[str, Tensor]]) -> SettingsError:
        step = state.global_step + (what in ("loss", "gradient"))  # the others are found when the step is counted
        lines = sorted({line for inputs in batches for line in lines_of(inputs, self.rows)})
        shown = ", ".join(map(str, lines[:_ROWS_SHOWN])) + ", …" * (len(lines) > _ROWS_SHOWN)
        where = f" (rows of lines {shown})" if lines else ""
        fix = _fix_of_base(self.base) or _FIX
        return SettingsError([f"training: the {what} is not finite at step {step} of {state.max_steps}{where}; {fix}"])


def _fix_of_base(base: Path) -> str | None:
    if not (bad := weights_not_finite(base)):
        return None
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"nor is {bad[0]}{more} in the base {str(base)!r}, so copy or download it again"


@torch.no_grad()
def _finite(tensors: Sequence[Tensor]) -> bool:
    """Whether their norm is finite: one number, and so one wait for the GPU."""
    return bool(get_total_norm(tensors).isfinite())


def lines_of(inputs: Mapping[str, Tensor], rows: Dataset) -> list[int]:
    """The lines of the training rows in a batch, found by their tokens, which are the same in any layout of it."""
    whole = {tuple(tokens) for tokens in _tokens_of_rows(inputs)}
    found = zip(rows["input_ids"], rows["line"], strict=True)
    return [line for tokens, line in found if tuple(tokens) in whole]


def _tokens_of_rows(inputs: Mapping[str, Tensor]) -> Iterator[list[int]]:
    """The tokens of each row: of a padded batch, or of a pack (see ``packing.plan.collate_pack``)."""
    if "segments" not in inputs:
        for tokens, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
            yield tokens[mask].tolist()
        return
    lengths, prefixes = inputs["segments"].T.tolist()
    parts = [part.tolist() for part in inputs["input_ids"][0].split(lengths)]
    for part, prefix in zip(parts, prefixes, strict=True):
        yield [*(parts[prefix] if prefix >= 0 else []), *part]
