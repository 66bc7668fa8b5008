"""Every optimiser step has the same examples in the same order on any number of devices."""

import pytest
from datasets import Dataset

from training_core.config import RunConfig
from training_core.packing.batches import Steps, lay_out

FILLER = -1


def steps_of(examples: int, config: RunConfig, devices: int) -> tuple[Steps, list[list[int]]]:
    """The examples of each optimiser step, as the trainer distributes its batches, without fillers."""
    rows, batches = config.per_device_train_batch_size, config.gradient_accumulation_steps
    steps = Steps.of(config, examples, rows, batches, devices)
    laid_out = lay_out(Dataset.from_dict({"number": [*range(examples), FILLER]}), steps, config.seed)["number"]
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


def test_idle_share_counts_batches_that_divide_unevenly() -> None:
    config = RunConfig(per_device_train_batch_size=1, gradient_accumulation_steps=3)
    assert steps_of(9, config, 3)[0].idle == 0
    assert steps_of(9, config, 4)[0].idle == pytest.approx(0.25)
