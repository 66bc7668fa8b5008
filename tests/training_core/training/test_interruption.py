"""A signal saves a checkpoint before it takes effect."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from training_core.training import interruption
from training_core.training.interruption import save_when_interrupted

ARGUMENTS = TrainingArguments(output_dir="unused", use_cpu=True)


class EndedError(Exception):
    """What the handler of the surrounding program raises, as Prefect's does."""


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    def end(number: int, _: object) -> None:
        raise EndedError(signal.Signals(number).name)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_checkpoint_of_an_interruption_is_a_point_of_the_curve() -> None:
    with pytest.raises(EndedError), save_when_interrupted() as callback:
        signal.raise_signal(signal.SIGTERM)
        control = TrainerControl()
        callback.on_step_end(ARGUMENTS, TrainerState(), control)
        assert control.should_log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_after_the_step_with_a_checkpoint(number: signal.Signals) -> None:
    steps = []
    with pytest.raises(EndedError, match=number.name), save_when_interrupted() as callback:
        for step in range(9):
            control = TrainerControl()
            if step == 3:
                signal.raise_signal(number)
            callback.on_substep_end(ARGUMENTS, TrainerState(), control)
            callback.on_step_end(ARGUMENTS, TrainerState(), control)
            steps.append((control.should_save, control.should_training_stop))
            if control.should_training_stop:
                break
    assert steps == [(False, False)] * 3 + [(True, True)]


def test_second_signal_ends_at_once() -> None:
    with pytest.raises(EndedError), save_when_interrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was ignored")


@pytest.mark.parametrize("event", ["on_substep_end", "on_prediction_step"])
def test_step_or_evaluation_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    monkeypatch.setattr(interruption, "_SECONDS_TO_SAVE", {signal.SIGINT: 0.01, signal.SIGTERM: 9})
    with pytest.raises(EndedError), save_when_interrupted() as callback:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.02)
        getattr(callback, event)(ARGUMENTS, TrainerState(), TrainerControl())
        pytest.fail("the step went on")


def test_handlers_are_those_from_before_without_a_signal() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with save_when_interrupted():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


# Waits for another process as a collective operation does: in C++, where no handler of Python's runs.
STUCK = """
import logging, signal
from torch.distributed import TCPStore
from training_core.training import interruption
logging.basicConfig()
interruption._SECONDS_TO_SAVE = {signal.SIGINT: 0.1, signal.SIGTERM: 0.1}
interruption._SECONDS_TO_LEAVE = 0.1
interruption.end_when_stuck()
with interruption.save_when_interrupted():
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    print("waiting", flush=True)
    store.wait(["of the process that failed"])
"""


def test_process_that_waits_for_a_failed_one_ends_with_a_message() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout and process.stdout.readline() == "waiting\n"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: the step does not end, so another process of this training has failed" in errors
