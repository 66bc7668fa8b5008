"""Which examples make which optimiser step: the same ones in the same order on any number of devices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from training_core.config import RunConfig
from training_core.dataset.encoding import IGNORED_LABEL
from training_core.dataset.splits import held_out_sample
from training_core.packing.division import Unit, divide
from training_core.packing.pieces import Piece, tokens_of
from training_core.packing.plan import PackingPlan, pack_limits, packed_dataset, plan_packing

NOTABLY_IDLE = 0.1


@dataclass(frozen=True)
class Steps:
    """How many examples (rows, or packs of rows) make a batch, an optimiser step and a training.

    ``batch_size`` is that of one device. ``per_step`` and ``examples`` count the examples of an optimiser step and of
    the whole training on all devices together; they do not depend on the number of devices. ``parts``: the batches
    into which an example is divided.
    """

    batch_size: int
    per_step: int
    examples: int
    devices: int
    parts: int = 1

    @classmethod
    def of(
        cls, config: RunConfig, examples: int, batch_size: int, batches: int, devices: int = 1, parts: int = 1
    ) -> "Steps":
        """Epochs follow one another without a break: a step may span two, and all steps but the last have one size."""
        per_step = min(batch_size * batches, examples)
        all_epochs = max(1, round(examples * config.num_train_epochs))
        return cls(batch_size, per_step, config.max_steps * per_step or all_epochs, devices, parts)

    @property
    def total(self) -> int:
        return math.ceil(self.examples / self.per_step)

    @property
    def accumulation(self) -> int:
        """Batches that one device accumulates before an optimiser step."""
        return math.ceil(self.per_step * self.parts / (self.batch_size * self.devices))


@dataclass(frozen=True)
class BatchSize:
    """The size of a batch: tokens computed, and tokens with a label."""

    tokens: int
    labels: int


@dataclass(frozen=True)
class Examples:
    """What a device computes at once: rows or packs, and the tokens of each; after the last one comes a filler.

    The filler has no labels. ``units`` [u, n, d] holds the indices of what is always in one step: a row, or the packs
    that a pack of the plan is divided into, n one after the other for d devices.
    """

    content: Dataset
    tokens: np.ndarray
    batch_size: int
    units: np.ndarray

    @property
    def heaviest_batch(self) -> Dataset:
        return self.content.select(np.argsort(self.tokens)[-self.batch_size :])

    @property
    def tokens_at_most(self) -> int:
        """Tokens in the heaviest batch."""
        return int(np.sort(self.tokens)[-self.batch_size :].sum())

    def heaviest_size(self) -> "BatchSize":
        """The size of the heaviest batch."""
        batch = list(self.heaviest_batch)
        labels = sum(label != IGNORED_LABEL for example in batch for label in example["labels"])
        return BatchSize(self.tokens_at_most, labels)


@dataclass(frozen=True)
class Batches:
    """The examples to train on, those held out, and the optimiser steps."""

    train: Examples
    held_out: Examples
    steps: Steps
    seed: int
    tokens_per_step: float
    sharing_rows: int = 0

    @property
    def train_order(self) -> Dataset:
        """All examples of the training, in the order in which the trainer reads them."""
        return self.train.content.select(np.concatenate(order_of_steps(self.train, self.steps, self.seed)))

    @property
    def idle(self) -> float:
        """The share of time for which devices idle in the first epoch: a step ends with its slowest device."""
        rows = "input_ids" in self.train.content.column_names  # padded: each takes about as long as another
        weights = np.append(np.ones_like(self.train.tokens) if rows else self.train.tokens, 0)
        steps = order_of_steps(self.train, self.steps, self.seed)
        loads = [weights[step].reshape(-1, self.steps.devices, self.steps.batch_size).sum((0, 2)) for step in steps]
        return 1 - np.sum(loads) / (np.max(loads, axis=1).sum() * self.steps.devices)

    @property
    def held_out_order(self) -> Dataset:
        """Full batches only: the trainer would fill an incomplete one with rows that it has counted already."""
        count = len(self.held_out.tokens)
        return self.held_out.content.select(_padded(np.arange(count), self.held_out.batch_size, count))

    @property
    def train_tokens(self) -> int:
        """Tokens computed in the whole training."""
        return round(float(self.train.tokens.sum()) / len(self.train.units) * self.steps.examples)


def make_batches(
    train: Dataset, held_out: Dataset, config: RunConfig, devices: int = 1, batch_tokens: int | None = None
) -> Batches:
    """The batches of a training on a number of devices; each step holds the same rows as on one device.

    Packs are divided into smaller ones where that computes no more tokens, or, with ``batch_tokens``, until they have
    about so many.
    """
    train = train.select_columns(["input_ids", "labels"])
    held_out = held_out_sample(held_out, config).select_columns(["input_ids", "labels"])
    tokens = tokens_per_step(train, config)
    rows, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if not config.packing:
        steps = Steps.of(config, len(train), rows, accumulation, devices)
        examples, others = _single(train, rows), _single(held_out, config.per_device_eval_batch_size)
        return Batches(examples, others, steps, config.seed, tokens)
    plan, held_out_plan = _plans(train, held_out, config)
    examples = packed(train, plan, divide(plan, devices, batch_tokens))
    steps = Steps.of(config, len(plan.packs), 1, plan.packs_per_step, devices, parts=examples.units[0].size)
    return Batches(examples, packed(held_out, held_out_plan), steps, config.seed, tokens, plan.sharing_rows)


def _plans(train: Dataset, held_out: Dataset, config: RunConfig) -> tuple[PackingPlan, PackingPlan]:
    budget, rows_per_step = pack_limits(config)
    plan = plan_packing(train, budget, rows_per_step, config.seed)
    return plan, plan_packing(held_out, budget, len(held_out), config.seed)


def tokens_per_step(rows: Dataset, config: RunConfig) -> float:
    """Tokens before sharing in the rows of an optimiser step, on average: prompts and completions of whole rows."""
    per_row = pc.mean(pc.list_value_length(rows.data.column("input_ids"))).as_py()
    return per_row * min(len(rows), config.per_device_train_batch_size * config.gradient_accumulation_steps)


def packed(rows: Dataset, plan: PackingPlan, units: Sequence[Unit] = ()) -> Examples:
    """The packs of a plan as examples, or those into which they are divided."""
    units = units or [((pack,),) for pack in plan.packs]
    packs = [pack for unit in units for turn in unit for pack in turn if pack]
    filler = Piece((len(rows),), 0, 1)
    numbers = iter(range(len(packs)))
    indices = [[[next(numbers) if pack else len(packs) for pack in turn] for turn in unit] for unit in units]
    content = packed_dataset(_with_filler(rows), [*packs, (filler,)])
    return Examples(content, np.array([tokens_of(pack) for pack in packs]), 1, np.array(indices))


def _single(rows: Dataset, batch_size: int) -> Examples:
    lengths = pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_numpy()
    return Examples(_with_filler(rows), lengths, batch_size, np.arange(len(rows)).reshape(-1, 1, 1))


def order_of_steps(examples: Examples, steps: Steps, seed: int) -> list[np.ndarray]:
    """The indices of the examples of each step, in the order in which the trainer reads them, anew every epoch.

    Each step is padded with the filler to full batches for all devices. The filler has no label, so it adds nothing to
    loss or gradient.
    """
    units = examples.units
    epochs = range(math.ceil(steps.examples / len(units)))
    order = np.concatenate([np.random.default_rng([seed, number]).permutation(len(units)) for number in epochs])
    parts = np.split(order[: steps.examples], range(steps.per_step, steps.examples, steps.per_step))
    indices = (_balanced(units[part], np.append(examples.tokens, 0)).swapaxes(0, 1).ravel() for part in parts)
    return [_padded(step, steps.batch_size * steps.devices, filler=len(examples.tokens)) for step in indices]


def _balanced(units: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The units of a step; of each, the device with the fewest tokens so far gets the largest packs."""
    if units.shape[2] == 1:
        return units
    loads = np.zeros(units.shape[2])
    columns = np.zeros(units.shape[::2], dtype=int)
    for number, weights in enumerate(tokens[units].sum(1)):
        columns[number, loads.argsort(kind="stable")] = (-weights).argsort(kind="stable")
        loads += weights[columns[number]]
    return np.take_along_axis(units, columns[:, None], axis=2)


def _padded(indices: np.ndarray, multiple: int, filler: int) -> np.ndarray:
    return np.pad(indices, (0, -len(indices) % multiple), constant_values=filler)


def _with_filler(rows: Dataset) -> Dataset:
    filler = Dataset.from_dict({"input_ids": [[0]], "labels": [[IGNORED_LABEL]]}, features=rows.features)
    return concatenate_datasets([rows, filler])
