"""SIGINT (Ctrl-C) and SIGTERM (a worker or a machine that ends) lose no step: a checkpoint is saved first."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

# Who sends a signal waits only so long for the end: a person about ten seconds, Kubernetes thirty. A step that takes
# longer is given up.
_SECONDS_TO_SAVE = {signal.SIGINT: 7, signal.SIGTERM: 24}
_SECONDS_TO_LEAVE = 3  # after those; torch's launcher kills 30 seconds after its SIGTERM


@contextlib.contextmanager
def save_when_interrupted() -> Iterator["SaveWhenInterrupted"]:
    """Yield a callback for the trainer; a signal ends the training after its step, with a checkpoint.

    At the end of the body the signal takes the effect that it had before, such as ``KeyboardInterrupt``. A second
    signal takes it at once. Does nothing outside of the main thread, which alone receives signals.
    """
    callback = SaveWhenInterrupted()
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, callback.receive) for number in _SECONDS_TO_SAVE if is_main}
    callback.before = before
    try:
        yield callback
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if callback.received:
        signal.raise_signal(callback.received)


def end_when_stuck() -> None:
    """Let this process, one of several, end with a message where a signal does not end it: when it waits for another.

    The launcher sends SIGTERM to all when one has failed. Who waits on the GPU for that one runs no handler of Python:
    only the part in C, which writes the signal's number to a pipe that a thread reads.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    threading.Thread(target=_leave, args=(receiver,), daemon=True).start()


def _leave(receiver: int) -> None:
    while (number := os.read(receiver, 1)[0]) not in _SECONDS_TO_SAVE:
        pass
    time.sleep(_SECONDS_TO_SAVE[signal.Signals(number)] + _SECONDS_TO_LEAVE)
    what = "the step does not end, so another process of this training has failed or takes too long"
    logger.error("%s: %s; this one ends without a checkpoint", signal.Signals(number).name, what)
    logging.shutdown()
    os._exit(128 + number)


class SaveWhenInterrupted(TrainerCallback):
    """Stops the trainer with a checkpoint after the step in which one of the processes received a signal."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}
        self.deadline = 0.0

    def receive(self, number: int, _: Any) -> None:
        """Handle a signal: note the first one, give way to the second."""
        if self.received:
            self._give_up()
        self.received = signal.Signals(number)
        self.deadline = time.monotonic() + _SECONDS_TO_SAVE[self.received]
        logger.warning("%s: a checkpoint is saved after this step; a second signal ends at once", self.received.name)

    def _give_up(self) -> None:
        assert self.received
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.raise_signal(self.received)

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._give_up_when_late()

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self._give_up_when_late()

    def _give_up_when_late(self) -> None:
        if self.received and time.monotonic() > self.deadline:
            logger.warning("The step, or its evaluation, takes too long: the training ends without a checkpoint of it")
            self._give_up()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        ranks = PartialState()
        stops = torch.tensor(float(self.received is not None), device=ranks.device)
        if ranks.num_processes > 1:  # all end after the same step, whoever received the signal first
            stops = reduce(stops, "sum")
        if stops.item():
            # A checkpoint is also a point of the curve: a resumed training knows only the steps after it.
            control.should_log = control.should_save = control.should_training_stop = True
            self.received = self.received or signal.SIGTERM
