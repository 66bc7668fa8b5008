"""Whether this machine can compile kernels: Triton builds a part of each with a C compiler, when it first runs."""

import textwrap

import torch

_LONGEST_CAUSE = 200
_FIX = "install a C compiler and Python's headers: apt-get install gcc libc6-dev python3-dev"


def compiler_problems(device: str = "cuda") -> list[str]:
    """Why no kernel can be compiled for this machine's GPU; none where one can, and none without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        return []
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except RuntimeError as error:
        cause = textwrap.shorten(str(error), _LONGEST_CAUSE, placeholder=" …")
        return [f"GPU: training needs kernels that are compiled on this machine, and that fails: {cause}; {_FIX}"]
    return []
