"""Whether torch can use the GPU that should be there: without this check all would run on the CPU, silently."""

import os
import shutil
from pathlib import Path

import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"  # set to nothing, it says that a process shall use no GPU

_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_DEVICES = Path("/dev")
_BY_CHOICE = f"to use the CPU, set {VISIBLE} to nothing"


def gpu_problems(*, gpu_expected: bool) -> list[str]:
    """Why this process cannot use the machine's GPU; ``gpu_expected``: whether it is also a problem to find none."""
    if torch.cuda.is_available() or os.environ.get(VISIBLE) in ("", "-1"):
        return []
    if driver := find_driver():
        return [f"GPU: found {driver}, but torch cannot use it: {_fix_of_torch()}; {_BY_CHOICE}"]
    if gpu_expected:
        fix = "start the worker on a machine with one, or give its container the GPU (docker run --gpus all)"
        return [
            f"GPU: expected one on this worker of {os.uname().nodename}, found no NVIDIA driver; {fix}; {_BY_CHOICE}"
        ]
    return []


def find_driver() -> str | None:
    """What shows that this machine has an NVIDIA GPU: the driver's version, a device, or its program."""
    if _DRIVER_VERSION.is_file():
        return _DRIVER_VERSION.read_text(encoding="utf-8").splitlines()[0]
    device = min(_DEVICES.glob("nvidia[0-9]*"), default=None)
    return str(device) if device else shutil.which("nvidia-smi")


def _fix_of_torch() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA, so install one with it (https://pytorch.org)"
    what = f"torch {torch.__version__} needs a driver for CUDA {torch.version.cuda}"
    return f"{what}, so update the driver, or install a torch for the driver's CUDA (nvidia-smi shows it)"
