"""Versions and compiler, the product with four-bit weights, and the dtypes of models that train and answer."""

import platform
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from benchmarks.gpu_steps.bench import TINY_SHAPES, Bench, settings, training_data
from benchmarks.gpu_steps.checks import Check, below, figure, holds
from training_core.evaluation.generation import generate
from training_core.model_setup import load_model_and_tokenizer
from training_core.trainer import train_model
from training_core.utils import pick_precision

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "numpy")
OPTIONAL = ("triton", "flash_attn", "liger_kernel", "fla", "causal_conv1d")
SMALL = {"num_hidden_layers": 2, "vocab_size": 4_096, "hidden_size": 512, "intermediate_size": 1_024}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
HYBRID = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4}
KINDS: dict[str, tuple[dict[str, Any], bool]] = {  # and whether its rows can be packed
    "qwen2": ({}, True),
    "qwen3": ({}, True),
    "qwen3_5_text": (HYBRID, False),
}


def environment(bench: Bench) -> Iterator[Check]:
    """What the other steps depend on, and whether bitsandbytes multiplies right at each of its kernels' sizes."""
    yield figure("versions", ", ".join([f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]))
    yield figure("installed besides", ", ".join(name for name in OPTIONAL if find_spec(name)) or "none")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    yield figure("C compiler", compiler or "none")
    yield figure("precision", pick_precision().reason)
    if torch.cuda.is_available():
        yield figure("card", torch.cuda.get_device_name())
        yield figure("driver", _driver())
        yield figure("CUDA of torch", torch.version.cuda)
        yield figure("free of total GiB", "{:.1f} of {:.1f}".format(*(size / 2**30 for size in torch.cuda.mem_get_info())))
    layer = _nf4_layer(*((64, 128) if bench.tiny else (1_536, 8_960)), bench.device)
    for rows in (1, 4, 16, 512):
        yield below(f"relative error of the NF4 product, {rows} rows", _product_error(layer, rows), 1e-2)


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
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


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖, in fp32."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def dtypes(bench: Bench) -> Iterator[Check]:
    """In which dtypes models of each architecture train and answer, by the product's path."""
    for kind, (changes, packing) in KINDS.items():
        shapes = {"model_type": kind} | SMALL | changes
        base = bench.base_of(kind, shapes | ({"vocab_size": TINY_SHAPES["vocab_size"]} if bench.tiny else {}))
        rows = bench.rows(200, 2, 2).make(TINY_SHAPES["vocab_size"])
        config = settings(base, max_steps=1, packing=packing, eval_max_new_tokens=8)
        loaded = load_model_and_tokenizer(config)
        expected = str(loaded.precision.dtype)
        with watch_dtypes(loaded.model) as training:
            train_model(loaded, training_data(rows, rows), config, bench.run_dir(kind))
        with watch_dtypes(loaded.model) as answering:
            generate(loaded, [row[:-40] for row in rows["input_ids"]], config)
        for phase, found in (("training", training), ("answering", answering)):
            for part, seen in sorted(found.items()):
                yield holds(f"{kind}, {phase}: {part}", ", ".join(sorted(seen)), expected)
        adapter = {str(weight.dtype) for weight in loaded.model.parameters() if weight.requires_grad}
        yield holds(f"{kind}: adapter", ", ".join(sorted(adapter)), "torch.float32")


@contextmanager
def watch_dtypes(model: nn.Module) -> Iterator[Mapping[str, set[str]]]:
    """Collects the dtypes of the residual stream after each layer and of queries, keys and values."""
    seen: dict[str, set[str]] = defaultdict(set)

    def watch(name: str, module: nn.Module) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            seen[name].add(str((output[0] if isinstance(output, tuple) else output).dtype))

        return module.register_forward_hook(keep)

    handles = []
    for name, module in model.named_modules():
        if type(module).__name__.endswith("DecoderLayer"):
            handles.append(watch("residual", module))
        if name.endswith(("q_proj", "k_proj", "v_proj", "in_proj_qkv")):
            handles.append(watch(name.rpartition(".")[2], module))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
