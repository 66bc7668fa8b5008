"""What the files of an exported adapter say, against the registered one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import Tensor

from training_core.base_weights import text_prefix
from training_core.export.compared_weights import (
    DAMAGED,
    EXPORT_AGAIN,
    KIN,
    PREFIX,
    Registered,
    layers_of,
    weight_names,
    weights_alike,
    weights_of,
)
from training_core.export.findings import Finding
from training_core.export.folder_runtime import ADAPTER_CONFIG, named_base, read_json
from training_core.model_setup import digest_base_model


def inspect_adapter(folder: Path, registered: Registered) -> Iterator[Finding]:
    """Its files, the base that it names, its keys, and its matrices against the registered ones."""
    if problem := _damage(folder):
        yield Finding(DAMAGED, problem, EXPORT_AGAIN)
        return
    yield from _named(folder, registered)
    found, own = layers_of(folder), layers_of(registered.adapter)
    yield from _unknown_keys(found, registered.base)
    yield from _compared(found, own, read_json(folder / ADAPTER_CONFIG), read_json(registered.adapter / ADAPTER_CONFIG))


def _damage(folder: Path) -> str:
    """Why the adapter's folder cannot be loaded; empty where it can."""
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        return f"The adapter's folder has no {SAFETENSORS_WEIGHTS_NAME}"
    try:
        layers_of(folder)
    except SafetensorError as error:
        return f"{SAFETENSORS_WEIGHTS_NAME} is cut or damaged: {error}"
    config = read_json(folder / ADAPTER_CONFIG)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float):
        return ""
    return f"{ADAPTER_CONFIG} has r {rank!r} and lora_alpha {alpha!r}, expected a rank of at least 1 and a number"


def _named(folder: Path, registered: Registered) -> Iterator[Finding]:
    config, base = read_json(folder / ADAPTER_CONFIG), named_base(folder, registered.base)
    name, commit = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    if base != registered.base and digest_base_model(base) != digest_base_model(registered.base):
        yield from _other_base(name, weights_of(base), weights_of(registered.base))
    elif base == registered.base and name and not _same_name(name, registered):
        sentence = f"Another base is named: {ADAPTER_CONFIG} says {name!r}, the version has {registered.base_name!r}"
        yield Finding("another base", sentence, f"serve it on {registered.base_name}")
    elif commit and registered.base_commit and commit != registered.base_commit:
        sentence = f"Another revision of the base is named: {commit}, the version has {registered.base_commit}"
        yield Finding("another revision of the base", sentence, f"serve it at revision {registered.base_commit}")


def _same_name(name: str, registered: Registered) -> bool:
    """Folders may have been moved, so only their last part counts."""
    names = {Path(registered.base_name).name, registered.base.name}
    return name == registered.base_name or Path(name).name in names


def _other_base(name: str, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[Finding]:
    alike = weights_alike(found, own)
    if alike == 1.0:
        return
    if alike > KIN:
        sentence = f"Another revision of the base: weights of {name!r} are close to the registered, not equal"
        yield Finding("another revision of the base", sentence, "serve it on the base at the registered commit")
    else:
        sentence = f"Another base: the weights of {name!r} are not those of the registered one, nor close to them"
        yield Finding("another base", sentence, "serve it on the registered base")


def _unknown_keys(found: Mapping[str, Tensor], base: Path) -> Iterator[Finding]:
    released = {name.removesuffix(".weight") for name in weight_names(base)}
    layers = {key: key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in found}
    unknown = [key for key, layer in layers.items() if not key.startswith(PREFIX) or layer not in released]
    if unknown:
        prefix = f"{PREFIX}{text_prefix(base)}"
        sentence = (
            f"Keys that servers do not know: {len(unknown)} of {len(found)} name no layer of the released base, "
            f"such as {unknown[0]!r}; servers ignore them in silence, expected names that begin with {prefix!r}"
        )
        yield Finding("unknown key prefix", sentence, f"{EXPORT_AGAIN} for this base")


def _compared(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], config: Mapping[str, Any], trained: Mapping[str, Any]
) -> Iterator[Finding]:
    ups = {name: weight for name, weight in found.items() if name.endswith("lora_B")}
    if zero := [name for name, weight in ups.items() if not weight.any()]:
        sentence = f"The adapter has no effect in {len(zero)} of {len(ups)} layers: their B matrices are zero"
        yield Finding("zero B", sentence, EXPORT_AGAIN)
        return
    rank, registered_rank = _rank(found), _rank(own)
    if rank < registered_rank:
        sentence = f"The rank is cut: {rank} of {registered_rank} components of the registered adapter are left"
        yield Finding("rank cut", sentence, f"{EXPORT_AGAIN}; let the server take rank {registered_rank}")
        return
    scales = [one["lora_alpha"] / one["r"] for one in (config, trained)]
    if scales[0] != scales[1] or config.get("use_rslora", False) != trained.get("use_rslora", False):
        sentence = (
            f"The adapter is scaled otherwise: lora_alpha / r is {scales[0]:g}, it was trained with {scales[1]:g}"
        )
        yield Finding("adapter changed", sentence, EXPORT_AGAIN)
    yield from _same_weights(found, own)


def _same_weights(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[Finding]:
    """By layer's end, as prefixes are another matter."""
    ends = {_end(name): weight for name, weight in found.items()}
    missing = [name for name in own if _end(name) not in ends]
    other = [n for n, weight in own.items() if _end(n) in ends and not _equal(ends[_end(n)], weight)]
    if missing or other:
        sentence = (
            f"Other weights: of {len(own)} matrices {len(missing)} are missing and {len(other)} are not the registered"
        )
        yield Finding("adapter changed", sentence, EXPORT_AGAIN)


def _end(name: str) -> str:
    """``base_model.model.model.layers.0.mlp.up_proj.lora_A`` → ``layers.0.mlp.up_proj.lora_A``."""
    return name[name.find("layers.") :]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=2**-7, atol=1e-6)


def _rank(weights: Mapping[str, Tensor]) -> int:
    """The most components of a layer that have a part in both matrices."""
    pairs = [(weight, weights.get(f"{name[:-1]}B")) for name, weight in weights.items() if name.endswith("lora_A")]
    used = [(a.abs().sum(1) > 0) & (b.abs().sum(0) > 0) for a, b in pairs if b is not None]
    return max((int(one.sum()) for one in used), default=0)
