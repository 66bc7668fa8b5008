"""What the weights of a merged model say: which base and how much of which adapter is in them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from training_core.base_weights import file_problems
from training_core.export.compared_weights import (
    DAMAGED,
    EXPORT_AGAIN,
    KIN,
    PREFIX,
    Registered,
    layers_of,
    weights_alike,
    weights_of,
)
from training_core.export.findings import Finding
from training_core.export.folder_runtime import ADAPTER_CONFIG, read_json
from training_core.export.lora import linear_layers_as_released, round_to_nf4
from training_core.export.verdict import VERDICT_FILE

_CLOSE = 0.1  # relative distance that 16-bit rounding of merged weights leaves, and no other adapter does


def inspect_merged(folder: Path, registered: Registered) -> Iterator[Finding]:
    """Its files, the base that it was merged into, and what was added to that."""
    if problems := file_problems(folder):
        yield Finding(DAMAGED, "; ".join(problems).replace("model_name: ", ""), EXPORT_AGAIN)
        return
    found, own, factors = weights_of(folder), _weights_to_merge(folder, registered), _updates(registered)
    plain = {name: weight for name, weight in found.items() if name not in factors}
    alike = weights_alike(plain, {name: weight for name, weight in own.items() if name not in factors})
    if alike < 1.0:
        yield from _merged_base(alike)
        return
    yield from _merged_adapter(found, own, factors)


def _weights_to_merge(folder: Path, registered: Registered) -> dict[str, Tensor]:
    """The registered base's weights as the export says that it took them: as released, or rounded to NF4 and back."""
    own = weights_of(registered.base)
    if read_json(folder / VERDICT_FILE).get("weights") != "nf4":
        return own
    rounded = {f"{layer}.weight" for layer in linear_layers_as_released(registered.base)}
    return {name: round_to_nf4(weight) if name in rounded else weight for name, weight in own.items()}


def _merged_base(alike: float) -> Iterator[Finding]:
    parts = "weights that no adapter changes (embeddings, norms)"
    if alike > KIN:
        sentence = f"Another revision of the base was merged: {parts} are close to the registered base's, not equal"
        yield Finding("another revision of the base", sentence, f"{EXPORT_AGAIN} on the base at the registered commit")
    else:
        sentence = f"Another base was merged: {parts} are not those of the registered base, nor close to them"
        yield Finding("another base", sentence, f"{EXPORT_AGAIN} on the registered base")


def _merged_adapter(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor, float]]
) -> Iterator[Finding]:
    """What was added to the base, layer by layer, against what the adapter adds."""
    added = {name: found[name].float() - own[name].float() for name in factors}
    if unchanged := [name for name, update in added.items() if not update.any()]:
        sentence = f"The adapter has no effect: {len(unchanged)} of {len(factors)} adapted layers are those of the base"
        yield Finding("zero B", sentence, f"{EXPORT_AGAIN}: merge the adapter into the base")
        return
    closest = [_closest(added[name], a.float(), b.float() * scale) for name, (a, b, scale) in factors.items()]
    rank, kept = len(next(iter(factors.values()))[0]), max(one.rank for one in closest)
    distance, strength = max(one.distance for one in closest), fmean(one.strength for one in closest)
    whole = [_components((b @ a).float()) for a, b, _ in factors.values()]
    left = [_components(update) for update in added.values()]
    if kept < rank and distance < _CLOSE:
        scaled = f", {strength:.2g} times as strong" if abs(strength - 1) > _CLOSE else ""
        sentence = f"The rank is cut: what was merged is {kept} of the adapter's {rank} components{scaled}"
        yield Finding("rank cut", sentence, EXPORT_AGAIN)
    elif distance >= _CLOSE and max(left) < max(whole):
        sentence = f"The rank is cut: what was merged has {max(left)} components, the adapter {max(whole)}"
        yield Finding("rank cut", sentence, EXPORT_AGAIN)
    elif distance >= _CLOSE or abs(strength - 1) > _CLOSE:
        sentence = (
            f"Another adapter was merged, or not with its strength: layers differ by up to {distance:.0%} of what"
        )
        yield Finding("adapter changed", f"{sentence} was added, which is {strength:.2g} times as strong", EXPORT_AGAIN)


class _Closest(NamedTuple):
    """How many of the adapter's first components, times a strength, are closest to an update, and how far they are."""

    distance: float
    rank: int
    strength: float


def _closest(added: Tensor, a: Tensor, b: Tensor) -> _Closest:
    found = []
    for rank in range(len(a), 0, -1):
        part = b[:, :rank] @ a[:rank]
        strength = float((added * part).sum() / part.square().sum().clamp_min(1e-30))
        found.append(_Closest(float((added - strength * part).norm() / added.norm()), rank, strength))
        if found[-1].distance < _CLOSE:
            return found[-1]
    return min(found)


def _components(update: Tensor) -> int:
    """How many singular values stand out of what 16-bit rounding adds."""
    values = torch.linalg.svdvals(update)
    return int((values > _CLOSE / 2 * values[0]).sum())


def _updates(registered: Registered) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and scale by the name of the weight in the released base."""
    config, weights = read_json(registered.adapter / ADAPTER_CONFIG), layers_of(registered.adapter)
    scale = config["lora_alpha"] / config["r"]
    names = [name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A")]
    found = {name: (weights[f"{name}.lora_A"], weights[f"{name}.lora_B"], scale) for name in names}
    return {f"{name.removeprefix(PREFIX)}.weight": factors for name, factors in found.items()}
