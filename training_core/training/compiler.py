"""Whether this machine can compile kernels: Triton builds a part of each with a C compiler, when it first runs."""

import os
import subprocess
import sys
import textwrap

import torch

_LONGEST_CAUSE = 200
_FIX = "install a C compiler and Python's headers: apt-get install gcc libc6-dev python3-dev"
_KERNEL = """
import sys, torch
try:
    torch.compile(torch.neg)(torch.ones(2, device=sys.argv[1]))
except RuntimeError as error:
    print(error)
    sys.exit(1)
"""


def compiler_problems(device: str = "cuda") -> list[str]:
    """Why no kernel can be compiled for this machine's GPU; none where one can, and none without a GPU.

    Compiles in a process of its own: a kernel needs a CUDA context, about half a GiB of the GPU's memory, and a process
    that has one keeps it beside the training.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return []
    command, environment = [sys.executable, "-c", _KERNEL, device], os.environ | {"PYTHONSAFEPATH": "1"}
    tried = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if not tried.returncode:
        return []
    *_, last_line = [f"exit code {tried.returncode}", *tried.stderr.splitlines()]  # of a process that crashed
    cause = textwrap.shorten(tried.stdout or last_line, _LONGEST_CAUSE, placeholder=" …")
    return [f"GPU: training needs kernels that are compiled on this machine, and that fails: {cause}; {_FIX}"]
