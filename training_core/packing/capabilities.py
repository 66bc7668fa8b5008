"""Which kernels compute the heavy parts of a run, by what is installed and by the device: one table."""

from importlib.util import find_spec

import torch
from peft import PeftModel

from training_core.base_support import is_delta_net
from training_core.packing.attention import attend_in_segments
from training_core.packing.blocks import runs_in_blocks

# Installed by some, and used by nothing here: docs/performance.md says why.
_NOT_USED = ("flash_attn", "liger_kernel")


def kernels(model: PeftModel, *, packing: bool) -> dict[str, str]:
    """What computes each heavy part of a training of ``model`` on its device, and of its answers."""
    on_gpu = model.device.type == "cuda"
    table = {
        "attention": _attention(model) if packing else "SDPA, every row whole",
        "loss": f"TRL's fused head: tiles of logits, of tokens with a label only; {_by('triton', on_gpu=on_gpu)}",
        "answers": "SDPA with a dynamic cache, one copy of a shared prefix",
    }
    if any(map(is_delta_net, model.modules())):
        table["gated DeltaNet"] = f"{_by('fla', on_gpu=on_gpu)}; convolution: {_by('causal_conv1d', on_gpu=on_gpu)}"
    if found := [name for name in _NOT_USED if find_spec(name)]:
        table["installed, not used"] = ", ".join(found)
    return table


def _attention(model: PeftModel) -> str:
    """Whether flex_attention runs is tried, since no table knows all cards, compilers and sizes of heads."""
    segment = torch.tensor([[1, -1]], device=model.device)
    if runs_in_blocks(model.get_base_model().base_model, segment, attend_in_segments):
        return "flex_attention in blocks of 128 tokens"
    return "SDPA, one call per segment"


def _by(package: str, *, on_gpu: bool) -> str:
    """The package whose kernels transformers or TRL then takes, or their own code in PyTorch."""
    return package if on_gpu and find_spec(package) else "PyTorch"
