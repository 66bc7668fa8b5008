"""One user of a GPU at a time: it holds a lock that all users of the machine respect."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from training_core.config import SettingsError
from training_core.training.out_of_memory import explain_out_of_memory

SECONDS_TO_WAIT = 90  # a process whose parent was killed is there for a minute
OTHER_GPU = "end what else uses the GPU, or choose another one with CUDA_VISIBLE_DEVICES"


class DeviceHeldError(RuntimeError):
    """Another process has the device."""


@contextlib.contextmanager
def sole_use_of_gpu(holder: str, fix: str = OTHER_GPU) -> Iterator[None]:
    """Hold the GPU for a command's work; raises ``SettingsError`` when it is held, or too small, with the fix of that.

    A training does not use it: there, a GPU that is held is worth another try.
    """
    try:
        with hold_gpu(holder), explain_out_of_memory("a batch of answers", fix):
            yield
    except DeviceHeldError as error:
        raise SettingsError([str(error)]) from error


@contextlib.contextmanager
def hold_gpu(holder: str) -> Iterator[None]:
    """Lock this process's GPU; does nothing without one. Raises ``DeviceHeldError`` that names the other holder."""
    if not torch.cuda.is_available():
        yield
        return
    with hold_device(f"GPU {torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}", holder):
        yield


@contextlib.contextmanager
def hold_device(name: str, holder: str, seconds: float = SECONDS_TO_WAIT) -> Iterator[None]:
    """Lock the device with this name; the lock's file names the holder.

    Waits for the end of a training that has just lost its parent process.
    """
    path = Path(tempfile.gettempdir()) / f"sft-flow {name}.lock"
    try:
        lock = FileLock(path, timeout=seconds, mode=0o666).acquire()
    except Timeout as error:
        fix = "wait for its end, or choose another GPU with CUDA_VISIBLE_DEVICES"
        raise DeviceHeldError(f"{name} is held by {path.read_text(encoding='utf-8')}: {fix}") from error
    with lock:
        with path.open("r+", encoding="utf-8") as file:  # Linux refuses "w" for another user's file in /tmp
            file.write(holder)
        yield
