"""The weights of a registered version and of an exported folder, by name, and how alike they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

DAMAGED = "damaged files"  # nothing can be asked: the folder cannot be loaded
EXPORT_AGAIN = "export the version again"
KIN = 0.5  # cosine of weights of one descent
PREFIX = "base_model.model."  # of an adapter's layers, before their names in the base


@dataclass(frozen=True)
class Registered:
    """What a version was registered with: its adapter's folder, its base here, and the base's name and commit."""

    adapter: Path
    base: Path
    base_name: str
    base_commit: str | None
    limit: int


def layers_of(adapter: Path) -> dict[str, Tensor]:
    """The adapter's matrices by layer and ``lora_A`` or ``lora_B``, as the file names them."""
    weights = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    return {name.removesuffix(".weight").replace(".default", ""): weight for name, weight in weights.items()}


def weight_names(base: Path) -> list[str]:
    """The names of all weights of a model's folder."""
    names = []
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names += list(file.keys())
    return names


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All weights of a model's folder, memory-mapped by safetensors, by name."""
    return {name: weight for path in sorted(folder.glob("*.safetensors")) for name, weight in load_file(path).items()}


def weights_alike(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> float:
    """1 where all weights are equal in bf16, else the least cosine of two weights; -1 where names or shapes differ."""
    if found.keys() != own.keys() or any(found[name].shape != weight.shape for name, weight in own.items()):
        return -1.0
    pairs = [(found[name], weight) for name, weight in own.items()]
    other = [pair for pair in pairs if not torch.equal(*(one.to(torch.bfloat16) for one in pair))]
    if not other:
        return 1.0
    flat = [(one.float().flatten(), weight.float().flatten()) for one, weight in other]
    return min(0.999, *(float(torch.cosine_similarity(one, weight, dim=0)) for one, weight in flat))
