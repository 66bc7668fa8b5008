"""Every optimiser step has the same examples in the same order on any number of devices."""

import numpy as np
import pytest
from datasets import Dataset
from packed_training import random_rows

from training_core.config import RunConfig
from training_core.packing import division
from training_core.packing.batches import Batches, Examples, Steps, make_batches, order_of_steps
from training_core.packing.pieces import tokens_of
from training_core.packing.plan import plan_packing

FILLER = -1


def steps_of(examples: int, config: RunConfig, devices: int) -> tuple[Steps, list[list[int]]]:
    """The examples of each optimiser step, as the trainer distributes its batches, without fillers."""
    rows, batches = config.per_device_train_batch_size, config.gradient_accumulation_steps
    steps = Steps.of(config, examples, rows, batches, devices)
    numbers = np.arange(examples)
    content = Dataset.from_dict({"number": [*range(examples), FILLER]})
    rows_alone = Examples(content, numbers, rows, numbers.reshape(-1, 1, 1))
    laid_out = content[np.concatenate(order_of_steps(rows_alone, steps, config.seed))]["number"]
    assert len(laid_out) % (rows * devices) == 0
    size = rows * devices * steps.accumulation
    parts = [laid_out[first : first + size] for first in range(0, len(laid_out), size)]
    for part in parts:
        batches_of_all = [part[first : first + rows * devices] for first in range(0, len(part), rows * devices)]
        assert all(set(batch) != {FILLER} for batch in batches_of_all), "a batch of fillers only"
    return steps, [[number for number in part if number != FILLER] for part in parts]


@pytest.mark.parametrize("devices", [2, 3, 4, 8])
@pytest.mark.parametrize(("rows", "batches"), [(1, 1), (1, 5), (1, 8), (4, 3), (3, 8)])
@pytest.mark.parametrize("settings", [{"num_train_epochs": 3.0}, {"num_train_epochs": 0.5}, {"max_steps": 7}])
def test_step_has_the_same_examples_on_all_device_counts(
    devices: int, rows: int, batches: int, settings: dict[str, float]
) -> None:
    config = RunConfig(per_device_train_batch_size=rows, gradient_accumulation_steps=batches, **settings)
    for examples in (1, 5, 37, 96):
        alone, expected = steps_of(examples, config, 1)
        together, laid_out = steps_of(examples, config, devices)
        assert laid_out == expected
        assert len(laid_out) == alone.total == together.total


def test_epochs_are_continuous_and_hold_every_example_once() -> None:
    config = RunConfig(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=3)
    _, steps = steps_of(9, config, 1)
    assert [len(step) for step in steps] == [4, 4, 4, 4, 4, 4, 3]
    seen = [number for step in steps for number in step]
    epochs = [seen[:9], seen[9:18], seen[18:]]
    assert all(sorted(numbers) == list(range(9)) for numbers in epochs)
    assert len({tuple(numbers) for numbers in epochs}) == 3


def test_step_is_never_larger_than_an_epoch() -> None:
    _, steps = steps_of(5, RunConfig(num_train_epochs=2), 1)
    assert [len(step) for step in steps] == [5, 5]


def packed_batches(rows: Dataset, devices: int, batch_tokens: int | None = None, **settings: int) -> Batches:
    config = RunConfig(**{"max_seq_length": 128, "gradient_accumulation_steps": 4, "num_train_epochs": 2} | settings)
    return make_batches(rows, rows, config, devices, batch_tokens)


def rows_of_steps(batches: Batches, rows: Dataset) -> list[list[int]]:
    """The rows of each optimiser step, by their answers: all tokens with a label."""
    numbers = {tuple(label for label in row["labels"] if label >= 0): number for number, row in enumerate(rows)}
    assert len(numbers) == len(rows), "expected rows with different answers"
    order, size = batches.train_order, batches.steps.accumulation * batches.steps.devices
    steps = [order.select(range(first, min(first + size, len(order)))) for first in range(0, len(order), size)]
    return [sorted(number for pack in step for number in _rows(pack, numbers)) for step in steps]


def _rows(pack: dict[str, list], numbers: dict[tuple[int, ...], int]) -> list[int]:
    ends = np.cumsum([length for length, _ in pack["segments"]])
    answers = [tuple(label for label in part if label >= 0) for part in np.split(pack["labels"], ends[:-1])]
    return [numbers[answer] for answer in answers if answer]


def shared_policies(policies: int, cases: int, policy_tokens: int = 60) -> Dataset:
    rows = random_rows(4, policies, cases, policy_tokens)
    return rows.map(
        lambda row, number: {"input_ids": [*row["input_ids"], number], "labels": [*row["labels"], number]},
        with_indices=True,
    )


@pytest.mark.parametrize(("policies", "cases", "batches"), [(9, 8, 4), (1, 60, 4), (30, 1, 2)])
def test_packs_of_a_step_hold_the_same_rows_on_all_device_counts(policies: int, cases: int, batches: int) -> None:
    rows = shared_policies(policies, cases)
    expected = rows_of_steps(packed_batches(rows, 1, gradient_accumulation_steps=batches), rows)
    for devices in (2, 3, 4, 8):
        divided = packed_batches(rows, devices, gradient_accumulation_steps=batches)
        assert rows_of_steps(divided, rows) == expected
        assert divided.steps.total == len(expected)


def test_smaller_batches_hold_the_same_rows_in_every_step() -> None:
    rows = shared_policies(9, 8)
    whole, halves = (packed_batches(rows, 2, tokens) for tokens in (None, 80))
    assert halves.train.tokens_at_most < 0.8 * whole.train.tokens_at_most
    assert rows_of_steps(halves, rows) == rows_of_steps(whole, rows)


@pytest.mark.parametrize("policies", [1, 20, 640])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_share_a_step_of_one_pack_evenly(policies: int, devices: int) -> None:
    """By default a step is one pack of 32 rows: 200 tokens of policy, 50 to 200 of case and answer."""
    random = np.random.default_rng(0)
    prompts = [[*[row % policies] * 200, *random.integers(0, 99, random.integers(50, 200))] for row in range(640)]
    rows = Dataset.from_list([{"input_ids": [*ids, 1], "labels": [-100] * len(ids) + [1]} for ids in prompts])
    batches = packed_batches(rows, devices, max_seq_length=4096, gradient_accumulation_steps=8)
    assert batches.steps.per_step == 1
    assert batches.idle < 0.2


def test_idle_share_counts_the_slowest_device() -> None:
    rows = Dataset.from_list(
        [{"input_ids": [*range(number, number + 9)], "labels": [-100] * 8 + [1]} for number in range(9)]
    )
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "packing": False}
    assert packed_batches(rows, 3, **settings).idle == 0
    assert packed_batches(rows, 4, **settings).idle == pytest.approx(0.25)


def test_packs_are_divided_where_that_computes_no_more_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(division, "_FEWEST_TOKENS", {"cpu": 64})
    rows = shared_policies(9, 4)
    plan = plan_packing(rows, 2_000, 16, seed=0)
    divided = [pack for unit in division.divide(plan, 1) for turn in unit for pack in turn if pack]
    assert len(divided) > 2 * len(plan.packs)
    assert sum(map(tokens_of, divided)) == plan.computed_tokens
    assert max(map(tokens_of, divided)) < 0.7 * max(map(tokens_of, plan.packs))
