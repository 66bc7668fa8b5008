"""Compile the Triton kernels of TRL's fused head for each kind of card, without one.

`PYTHONPATH=FOLDER:. python -m benchmarks.gpu_steps.compile_kernels`, with Triton unpacked in FOLDER; no part of the
tests, since its wheel has 190 MB.
"""

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trl.kernels import chunked_logprob

# Compute capability, and the number formats in which a training computes there.
FORMATS = {75: ("fp16",), 80: ("bf16", "fp16"), 86: ("bf16", "fp16"), 89: ("bf16", "fp16"), 90: ("bf16", "fp16")}
_WHOLE = ("mm_stride", "vocab_start", "n_cols")
_REAL = ("logit_scale", "softcap", "inv_t")
_ASKED = {"HAS_LOGPROB_GRAD", "HAS_IS_TOP1"}  # what TRL's trainer asks for


def compiled(kernel: Any, capability: int, number_format: str) -> int:
    """The bytes of machine code of a kernel; raises what Triton's compiler raises."""
    kinds = dict.fromkeys(_WHOLE, "i32") | dict.fromkeys(_REAL, "fp32")
    kinds |= {"mm_ptr": f"*{number_format}", "targets_ptr": "*i64"}
    constants = {name: name in _ASKED for name in kernel.arg_names if name.startswith("HAS_")}
    constants["BLOCK_SIZE"] = chunked_logprob._BLOCK_SIZE
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    return len(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"])


def main() -> None:
    """Print a line for each kernel, card and format."""
    print(f"triton {triton.__version__}, torch {torch.__version__}")  # noqa: T201
    for kernel in (chunked_logprob._forward_kernel, chunked_logprob._backward_kernel):
        for capability, formats in FORMATS.items():
            for number_format in formats:
                size = compiled(kernel, capability, number_format)
                print(f"{kernel.fn.__name__} sm_{capability} {number_format}: {size:,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
