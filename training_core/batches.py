"""Which examples make which optimiser step: the same ones in the same order on however many devices."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pyarrow.compute
from datasets import Dataset, concatenate_datasets

from training_core.config import RunConfig
from training_core.data_store import TrainingData
from training_core.evaluation import held_out_sample
from training_core.packing import PackingPlan, Piece, pack_limits, packed_dataset, plan_packing
from training_core.row_encoding import IGNORED_LABEL


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
class Batches:
    """Examples as the trainer takes them, one after the other, and the steps that they make."""

    train: Dataset
    held_out: Dataset
    steps: Steps
    sharing_rows: int
    tokens_per_step: float


def make_batches(data: TrainingData, config: RunConfig, devices: int = 1) -> Batches:
    """Lay out a training on a number of devices, every step of which holds the same rows as on one device."""
    train = data.train.select_columns(["input_ids", "labels"])
    held_out = held_out_sample(data.held_out, config).select_columns(["input_ids", "labels"])
    tokens = tokens_per_step(train, config)
    rows, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if not config.packing:
        steps = Steps.of(config, len(train), rows, accumulation, devices)
        # Full batches, for the trainer completes one that is not with rows that it has counted already.
        in_turn = _padded(np.arange(len(held_out)), config.per_device_eval_batch_size, len(held_out))
        return Batches(
            lay_out(_with_filler(train), steps, config.seed), _with_filler(held_out).select(in_turn), steps, 0, tokens
        )
    budget, rows_per_step = pack_limits(config)
    plan = plan_packing(train, budget, rows_per_step, config.seed)
    held_out_plan = plan_packing(held_out, budget, len(held_out), config.seed)
    steps = Steps.of(config, len(plan.packs), 1, plan.packs_per_step, devices)
    packs = lay_out(fillable_packs(train, plan), steps, config.seed)
    return Batches(packs, packed_dataset(held_out, held_out_plan), steps, plan.sharing_rows, tokens)


def tokens_per_step(rows: Dataset, config: RunConfig) -> float:
    """Real tokens, prompts and answers, in the rows of an optimiser step on average; every row counts in full."""
    per_row = pyarrow.compute.mean(pyarrow.compute.list_value_length(rows.data.column("input_ids"))).as_py()
    return per_row * min(len(rows), config.per_device_train_batch_size * config.gradient_accumulation_steps)


def fillable_packs(rows: Dataset, plan: PackingPlan) -> Dataset:
    """``packed_dataset`` with a pack at its end that teaches nothing, as ``lay_out`` needs it."""
    filler = (Piece((len(rows),), 0, 1),)
    return packed_dataset(_with_filler(rows), dataclasses.replace(plan, packs=(*plan.packs, filler)))


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
