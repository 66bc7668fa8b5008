"""Versions, card, driver and compiler, and the product with four-bit weights."""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

from benchmarks.gpu_steps.bench import Bench
from benchmarks.gpu_steps.checks import Check, below, figure, holds, relative_error
from training_core.training.compiler import compiler_problems
from training_core.utils import pick_precision

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "numpy")
OPTIONAL = ("triton", "flash_attn", "liger_kernel", "fla", "causal_conv1d")


def environment(bench: Bench) -> Iterator[Check]:
    """What the other steps depend on, and whether bitsandbytes multiplies right at each of its kernels' sizes."""
    yield figure(
        "versions", ", ".join([f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)])
    )
    yield figure("installed besides", ", ".join(name for name in OPTIONAL if find_spec(name)) or "none")
    yield figure("C compiler", shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") or "none")
    yield figure("precision", pick_precision().reason)
    if torch.cuda.is_available():
        yield holds("a first kernel", "; ".join(compiler_problems()) or "compiled", "compiled")
        yield figure("card", torch.cuda.get_device_name())
        yield figure("driver", _driver())
        yield figure("CUDA of torch", torch.version.cuda)
        yield figure(
            "free of total GiB", "{:.1f} of {:.1f}".format(*(size / 2**30 for size in torch.cuda.mem_get_info()))
        )
    layer = _nf4_layer(*((64, 128) if bench.tiny else (1_536, 8_960)), bench.device)
    for rows in (1, 4, 16, 512):
        yield below(f"relative error of the NF4 product, {rows} rows", _product_error(layer, rows), 1e-2)


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if not shutil.which(query[0]):
        return "unknown: no nvidia-smi"
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def _nf4_layer(inputs: int, outputs: int, device: str) -> Linear4bit:
    layer = Linear4bit(inputs, outputs, bias=False, compute_dtype=pick_precision().dtype, quant_type="nf4")
    return layer.to(device)


@torch.no_grad()
def _product_error(layer: Linear4bit, rows: int) -> float:
    """‖product - reference‖ / ‖reference‖, where the reference multiplies the same four-bit weights in fp32."""
    inputs = torch.randn(rows, layer.in_features, device=layer.weight.device).to(layer.compute_dtype)
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return relative_error(layer(inputs), inputs.float() @ weight.T)
