"""One training per GPU: it holds a lock that all users of the machine respect."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

_SECONDS_TO_WAIT = 60


@contextlib.contextmanager
def hold_gpu(run_dir: Path) -> Iterator[None]:
    """Lock this process's GPU for a training in ``run_dir``; does nothing without a GPU.

    Raises ``RuntimeError`` with the other training's folder when the GPU is locked already.
    """
    if not torch.cuda.is_available():
        yield
        return
    with hold_device(f"GPU {torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}", run_dir):
        yield


@contextlib.contextmanager
def hold_device(name: str, run_dir: Path, seconds: float = _SECONDS_TO_WAIT) -> Iterator[None]:
    """Lock the device with this name; the lock's file holds the folder of the training that has it.

    Waits for the end of a training that has just lost its parent process.
    """
    path = Path(tempfile.gettempdir()) / f"sft-flow {name}.lock"
    try:
        lock = FileLock(path, timeout=seconds, mode=0o666).acquire()
    except Timeout as error:
        fix = "wait for its end, or choose another GPU with CUDA_VISIBLE_DEVICES"
        raise RuntimeError(f"{name} is held by the training in {path.read_text(encoding='utf-8')}: {fix}") from error
    with lock:
        with path.open("r+", encoding="utf-8") as file:  # Linux refuses "w" for another user's file in /tmp
            file.write(str(run_dir))
        yield
