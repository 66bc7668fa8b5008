"""The matrices of a trained adapter, by the names that the released base has for its layers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor

from training_core.base_model import linear_layers
from training_core.base_weights import text_prefix, weight_shapes
from training_core.config import SettingsError

PEFT_PREFIX = "base_model.model."

# What changes the meaning of A and B, with the only value that exports know.
_PLAIN = {
    "peft_type": "LORA",
    **{"bias": "none", "use_dora": False, "use_rslora": False, "lora_bias": False, "fan_in_fan_out": False},
    **{"modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "trainable_token_indices": None},
}


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter: ``factors`` has A [rank, in] and B [out, rank] of each layer, ``scale`` multiplies B·A.

    The base's weights of the layers in ``in_four_bits`` are rounded to NF4 before anything is added.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    rank: int
    scale: float
    in_four_bits: frozenset[str] = frozenset()

    def merge(self, weight_name: str, weight: Tensor) -> Tensor:
        """A weight of the base [out, in] with the adapter's share, added in fp32; without a share, the weight.

        Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.
        """
        layer = weight_name.removesuffix(".weight")
        if layer in self.in_four_bits:
            weight = round_to_nf4(weight)
        if layer not in self.factors:
            return weight
        a, b = (factor.float() for factor in self.factors[layer])
        return torch.addmm(weight.float(), b, a, alpha=self.scale)


def round_to_nf4(weight: Tensor) -> Tensor:
    """A weight in NF4 with double quantisation, and back in fp32: as ``load_base`` stores linear layers."""
    packed, state = quantize_4bit(weight.float(), compress_statistics=True, quant_type="nf4")
    rounded: Tensor = dequantize_4bit(packed, state)
    return rounded


def linear_layers_as_released(base: Path) -> frozenset[str]:
    """The released names of the layers that a training over NF4 stores in four bits."""
    return frozenset(_with_prefix(layer, text_prefix(base)) for layer in linear_layers(base))


def read_lora(adapter: Path, base: Path) -> Lora:
    """The adapter in a folder, its layers named as in the released base.

    Raises ``SettingsError`` when it is no plain LoRA, changes nothing, has values that are no numbers, or a layer that
    the base lacks.
    """
    config = json.loads((adapter / CONFIG_NAME).read_text(encoding="utf-8"))
    weights = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    factors = _named_as_released(_pairs(weights), base)
    if problems := [*_unknown_kinds(config), *_bad_values(factors)]:
        raise SettingsError([f"adapter: {problem}" for problem in problems])
    return Lora(factors, int(config["r"]), config["lora_alpha"] / config["r"])


def _pairs(weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    end = ".lora_A.weight"
    layers = [name.removesuffix(end) for name in weights if name.endswith(end)]
    pairs = {layer: (weights[f"{layer}{end}"], weights[f"{layer}.lora_B.weight"]) for layer in sorted(layers)}
    if not pairs or len(weights) != 2 * len(pairs):
        raise SettingsError([f"adapter: expected pairs of lora_A and lora_B, found {', '.join(list(weights)[:3])} …"])
    return {layer.removeprefix(PEFT_PREFIX): pair for layer, pair in pairs.items()}


def _named_as_released(factors: Mapping[str, tuple[Tensor, Tensor]], base: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapters of a text part name their layers as released, or as transformers calls them, without its prefix."""
    shapes, prefix = weight_shapes(base), text_prefix(base)
    named = {
        layer if f"{layer}.weight" in shapes else _with_prefix(layer, prefix): pair for layer, pair in factors.items()
    }
    fitting = [layer for layer, (a, b) in named.items() if shapes.get(f"{layer}.weight") == (len(b), a.shape[1])]
    if other := [layer for layer in named if layer not in fitting]:
        what = f"{len(other)} of {len(named)} layers of these shapes, the first is {other[0]}"
        raise SettingsError([f"adapter: expected layers of the base in {base}, it lacks {what}; it is another base"])
    return named


def _with_prefix(layer: str, prefix: str) -> str:
    return prefix + layer.removeprefix("model.")


def _unknown_kinds(config: Mapping[str, object]) -> list[str]:
    return [
        f"expected {name} {value!r}, found {config[name]!r}; exports are of plain LoRA adapters"
        for name, value in _PLAIN.items()
        if name in config and (config[name] or None) != (value or None)
    ]


def _bad_values(factors: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
    if bad := [layer for layer, pair in factors.items() if not all(factor.isfinite().all() for factor in pair)]:
        return [f"{bad[0]} and {len(bad) - 1} more layers have values that are no finite numbers; train again"]
    if not any(b.any() for _, b in factors.values()):
        return ["every lora_B is zero, so that it changes nothing: the base would answer; train it first"]
    return []
