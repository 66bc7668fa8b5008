"""Two trainings never share a GPU by accident: whoever trains on it holds a lock that all users of the machine see."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout


@contextlib.contextmanager
def hold_gpu(run_dir: Path) -> Iterator[None]:
    """Hold this process's GPU for a training in ``run_dir``; without a GPU there is nothing to hold.

    Raises ``RuntimeError`` naming the other training's folder when the GPU is taken.
    """
    if not torch.cuda.is_available():
        yield
        return
    with hold_device(f"GPU {torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}", run_dir):
        yield


@contextlib.contextmanager
def hold_device(name: str, run_dir: Path) -> Iterator[None]:
    """Hold what bears a name on this machine; the lock's file tells others the folder of the training that holds it."""
    path = Path(tempfile.gettempdir()) / f"sft-flow {name}.lock"
    try:
        lock = FileLock(path, timeout=1, mode=0o666).acquire()
    except Timeout as error:
        fix = "wait until it is over, or give this training another GPU by CUDA_VISIBLE_DEVICES"
        raise RuntimeError(f"{name} is held by the training in {path.read_text(encoding='utf-8')}: {fix}") from error
    with lock:
        with path.open("r+", encoding="utf-8") as file:  # in /tmp nobody may create another user's file
            file.write(str(run_dir))
        yield
