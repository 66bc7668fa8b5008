"""Which examples make which optimiser step: the same ones in the same order on however many devices."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from training_core.config import RunConfig
from training_core.dataset.encoding import IGNORED_LABEL
from training_core.dataset.splits import held_out_sample
from training_core.packing.plan import PackingPlan, Piece, pack_limits, packed_dataset, plan_packing


@dataclass(frozen=True)
class Steps:
    """How examples (rows, or packs of rows) make up a training.

    ``batch_size`` is what a device handles at once; ``per_step`` and ``examples`` are those of an optimiser step and of
    the whole training on all devices together, and do not depend on their number.
    """

    batch_size: int
    per_step: int
    examples: int
    devices: int

    @classmethod
    def of(cls, config: RunConfig, examples: int, batch_size: int, batches: int, devices: int = 1) -> "Steps":
        """Passes over ``examples`` follow one another without a seam: all steps but the last are of one size."""
        per_step = min(batch_size * batches, examples)
        passes = max(1, round(examples * config.num_train_epochs))
        return cls(batch_size, per_step, config.max_steps * per_step or passes, devices)

    @property
    def total(self) -> int:
        return math.ceil(self.examples / self.per_step)

    @property
    def accumulation(self) -> int:
        """Batches that one device sums up before an optimiser step."""
        return math.ceil(self.per_step / (self.batch_size * self.devices))

    @property
    def idle(self) -> float:
        """The share of the devices' time that a step leaves unused, because its batches cannot be dealt out evenly."""
        return 1 - self.per_step / (self.batch_size * self.accumulation * self.devices)


@dataclass(frozen=True)
class BatchSize:
    """The size of a batch: tokens computed, those with a label, and the longest row, which attends to itself."""

    tokens: int
    labels: int
    longest_row: int


@dataclass(frozen=True)
class Examples:
    """Rows or packs, each with the tokens computed for it; behind the last one a filler that teaches nothing."""

    content: Dataset
    tokens: np.ndarray
    batch_size: int

    @property
    def heaviest_batch(self) -> Dataset:
        return self.content.select(np.argsort(self.tokens)[-self.batch_size :])

    @property
    def tokens_at_most(self) -> int:
        """Tokens of the heaviest batch."""
        return int(np.sort(self.tokens)[-self.batch_size :].sum())

    def heaviest_size(self) -> "BatchSize":
        """Of the heaviest batch."""
        batch = list(self.heaviest_batch)
        labels = sum(label != IGNORED_LABEL for example in batch for label in example["labels"])
        return BatchSize(self.tokens_at_most, labels, max(_longest_row(example) for example in batch))


@dataclass(frozen=True)
class Batches:
    """The examples to train on and those held out, and the steps that the former make."""

    train: Examples
    held_out: Examples
    steps: Steps
    seed: int
    tokens_per_step: float
    sharing_rows: int = 0

    @property
    def train_order(self) -> Dataset:
        """Every example of the training, one after the other."""
        return lay_out(self.train.content, self.steps, self.seed)

    @property
    def held_out_order(self) -> Dataset:
        """Full batches, for the trainer completes one that is not with rows that it has counted already."""
        count = len(self.held_out.tokens)
        return self.held_out.content.select(_padded(np.arange(count), self.held_out.batch_size, count))

    @property
    def train_tokens(self) -> int:
        """Tokens computed in the whole training."""
        return round(float(self.train.tokens.mean()) * self.steps.examples)


def make_batches(train: Dataset, held_out: Dataset, config: RunConfig, devices: int = 1) -> Batches:
    """Lay out a training on a number of devices, every step of which holds the same rows as on one device."""
    train = train.select_columns(["input_ids", "labels"])
    held_out = held_out_sample(held_out, config).select_columns(["input_ids", "labels"])
    tokens = tokens_per_step(train, config)
    rows, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if not config.packing:
        steps = Steps.of(config, len(train), rows, accumulation, devices)
        return Batches(
            _single(train, rows), _single(held_out, config.per_device_eval_batch_size), steps, config.seed, tokens
        )
    budget, rows_per_step = pack_limits(config)
    plan = plan_packing(train, budget, rows_per_step, config.seed)
    held_out_plan = plan_packing(held_out, budget, len(held_out), config.seed)
    steps = Steps.of(config, len(plan.packs), 1, plan.packs_per_step, devices)
    return Batches(packed(train, plan), packed(held_out, held_out_plan), steps, config.seed, tokens, plan.sharing_rows)


def tokens_per_step(rows: Dataset, config: RunConfig) -> float:
    """Tokens before sharing in the rows of an optimiser step, on average: prompts and answers, every row in full."""
    per_row = pc.mean(pc.list_value_length(rows.data.column("input_ids"))).as_py()
    return per_row * min(len(rows), config.per_device_train_batch_size * config.gradient_accumulation_steps)


def packed(rows: Dataset, plan: PackingPlan) -> Examples:
    """The packs of a plan as examples."""
    filler = (Piece((len(rows),), 0, 1),)
    packs = packed_dataset(_with_filler(rows), dataclasses.replace(plan, packs=(*plan.packs, filler)))
    return Examples(packs, np.array([sum(piece.tokens for piece in pack) for pack in plan.packs]), batch_size=1)


def _longest_row(example: Mapping[str, Any]) -> int:
    """Of a row its length; of a pack that of its longest row, prefix and all."""
    return max(example["position_ids"]) + 1 if "position_ids" in example else len(example["input_ids"])


def _single(rows: Dataset, batch_size: int) -> Examples:
    lengths = pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_numpy()
    return Examples(_with_filler(rows), lengths, batch_size)


def lay_out(examples: Dataset, steps: Steps, seed: int) -> Dataset:
    """All examples of a training, in a new order every pass; the last of ``examples`` is the filler.

    Each step is filled up to batches for all devices. A filler has no label: it adds nothing to loss or gradient.
    """
    count = len(examples) - 1
    passes = range(math.ceil(steps.examples / count))
    order = np.concatenate([np.random.default_rng([seed, number]).permutation(count) for number in passes])
    parts = np.split(order[: steps.examples], range(steps.per_step, steps.examples, steps.per_step))
    return examples.select(np.concatenate([_padded(part, steps.batch_size * steps.devices, count) for part in parts]))


def _padded(indices: np.ndarray, multiple: int, filler: int) -> np.ndarray:
    return np.pad(indices, (0, -len(indices) % multiple), constant_values=filler)


def _with_filler(rows: Dataset) -> Dataset:
    filler = Dataset.from_dict({"input_ids": [[0]], "labels": [[IGNORED_LABEL]]}, features=rows.features)
    return concatenate_datasets([rows, filler])
