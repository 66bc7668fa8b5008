"""What the files of an exported folder say: its adapter or merged weights against the registered ones, its base, and
its settings of decoding."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from training_core.base_weights import file_problems, text_prefix
from training_core.export.diagnosis import DECODING_FIX, Finding
from training_core.export.folder_runtime import ADAPTER_CONFIG, GENERATION_CONFIG, is_adapter, named_base, read_json
from training_core.export.lora import linear_layers_as_released, round_to_nf4
from training_core.export.verdict import VERDICT_FILE
from training_core.model_setup import digest_base_model

DAMAGED = "damaged files"  # nothing can be asked: the folder cannot be loaded

_PREFIX = "base_model.model."
_AGAIN = "export the version again"
_CLOSE = 0.1  # relative distance that 16-bit rounding of merged weights leaves, and no other adapter does
_KIN = 0.5  # cosine of weights of one descent


@dataclass(frozen=True)
class Registered:
    """What a version was registered with: its adapter's folder, its base here, and the base's name and commit."""

    adapter: Path
    base: Path
    base_name: str
    base_commit: str | None
    limit: int


def inspect_folder(folder: Path, registered: Registered, end_of_turn: int) -> list[Finding]:
    """The defects that the folder's files show, the gravest first."""
    weights = _adapter(folder, registered) if is_adapter(folder) else _merged(folder, registered)
    return [*weights, *_decoding(folder, registered, end_of_turn)]


# Adapters


def layers_of(adapter: Path) -> dict[str, Tensor]:
    """The adapter's matrices by layer and ``lora_A`` or ``lora_B``, as the file names them."""
    weights = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    return {name.removesuffix(".weight").replace(".default", ""): weight for name, weight in weights.items()}


def _adapter(folder: Path, registered: Registered) -> Iterator[Finding]:
    if problem := _damage(folder):
        yield Finding(DAMAGED, problem, _AGAIN)
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
        yield from _other_base(name, _weights_of(base), _weights_of(registered.base))
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
    if alike > _KIN:
        sentence = f"Another revision of the base: weights of {name!r} are close to the registered, not equal"
        yield Finding("another revision of the base", sentence, "serve it on the base at the registered commit")
    else:
        sentence = f"Another base: the weights of {name!r} are not those of the registered one, nor close to them"
        yield Finding("another base", sentence, "serve it on the registered base")


def _unknown_keys(found: Mapping[str, Tensor], base: Path) -> Iterator[Finding]:
    released = {name.removesuffix(".weight") for name in _names(base)}
    layers = {key: key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in found}
    unknown = [key for key, layer in layers.items() if not key.startswith(_PREFIX) or layer not in released]
    if unknown:
        prefix = f"{_PREFIX}{text_prefix(base)}"
        sentence = (
            f"Keys that servers do not know: {len(unknown)} of {len(found)} name no layer of the released base, "
            f"such as {unknown[0]!r}; servers ignore them in silence, expected names that begin with {prefix!r}"
        )
        yield Finding("unknown key prefix", sentence, f"{_AGAIN} for this base")


def _compared(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], config: Mapping[str, Any], trained: Mapping[str, Any]
) -> Iterator[Finding]:
    ups = {name: weight for name, weight in found.items() if name.endswith("lora_B")}
    if zero := [name for name, weight in ups.items() if not weight.any()]:
        sentence = f"The adapter has no effect in {len(zero)} of {len(ups)} layers: their B matrices are zero"
        yield Finding("zero B", sentence, _AGAIN)
        return
    rank, registered_rank = _rank(found), _rank(own)
    if rank < registered_rank:
        sentence = f"The rank is cut: {rank} of {registered_rank} components of the registered adapter are left"
        yield Finding("rank cut", sentence, f"{_AGAIN}; let the server take rank {registered_rank}")
        return
    scales = [one["lora_alpha"] / one["r"] for one in (config, trained)]
    if scales[0] != scales[1] or config.get("use_rslora", False) != trained.get("use_rslora", False):
        sentence = (
            f"The adapter is scaled otherwise: lora_alpha / r is {scales[0]:g}, it was trained with {scales[1]:g}"
        )
        yield Finding("adapter changed", sentence, _AGAIN)
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
        yield Finding("adapter changed", sentence, _AGAIN)


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


# Merged models


def _merged(folder: Path, registered: Registered) -> Iterator[Finding]:
    if problems := file_problems(folder):
        yield Finding(DAMAGED, "; ".join(problems).replace("model_name: ", ""), _AGAIN)
        return
    found, own, factors = _weights_of(folder), _weights_to_merge(folder, registered), _updates(registered)
    plain = {name: weight for name, weight in found.items() if name not in factors}
    alike = weights_alike(plain, {name: weight for name, weight in own.items() if name not in factors})
    if alike < 1.0:
        yield from _merged_base(alike)
        return
    yield from _merged_adapter(found, own, factors)


def _weights_to_merge(folder: Path, registered: Registered) -> dict[str, Tensor]:
    """The registered base's weights as the export says that it took them: as released, or rounded to NF4 and back."""
    own = _weights_of(registered.base)
    if read_json(folder / VERDICT_FILE).get("weights") != "nf4":
        return own
    rounded = {f"{layer}.weight" for layer in linear_layers_as_released(registered.base)}
    return {name: round_to_nf4(weight) if name in rounded else weight for name, weight in own.items()}


def _merged_base(alike: float) -> Iterator[Finding]:
    parts = "weights that no adapter changes (embeddings, norms)"
    if alike > _KIN:
        sentence = f"Another revision of the base was merged: {parts} are close to the registered base's, not equal"
        yield Finding("another revision of the base", sentence, f"{_AGAIN} on the base at the registered commit")
    else:
        sentence = f"Another base was merged: {parts} are not those of the registered base, nor close to them"
        yield Finding("another base", sentence, f"{_AGAIN} on the registered base")


def _merged_adapter(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor, float]]
) -> Iterator[Finding]:
    """What was added to the base, layer by layer, against what the adapter adds."""
    added = {name: found[name].float() - own[name].float() for name in factors}
    if unchanged := [name for name, update in added.items() if not update.any()]:
        sentence = f"The adapter has no effect: {len(unchanged)} of {len(factors)} adapted layers are those of the base"
        yield Finding("zero B", sentence, f"{_AGAIN}: merge the adapter into the base")
        return
    closest = [_closest(added[name], a.float(), b.float() * scale) for name, (a, b, scale) in factors.items()]
    rank, kept = len(next(iter(factors.values()))[0]), max(one.rank for one in closest)
    distance, strength = max(one.distance for one in closest), fmean(one.strength for one in closest)
    whole = [_components((b @ a).float()) for a, b, _ in factors.values()]
    left = [_components(update) for update in added.values()]
    if kept < rank and distance < _CLOSE:
        scaled = f", {strength:.2g} times as strong" if abs(strength - 1) > _CLOSE else ""
        sentence = f"The rank is cut: what was merged is {kept} of the adapter's {rank} components{scaled}"
        yield Finding("rank cut", sentence, _AGAIN)
    elif distance >= _CLOSE and max(left) < max(whole):
        sentence = f"The rank is cut: what was merged has {max(left)} components, the adapter {max(whole)}"
        yield Finding("rank cut", sentence, _AGAIN)
    elif distance >= _CLOSE or abs(strength - 1) > _CLOSE:
        sentence = (
            f"Another adapter was merged, or not with its strength: layers differ by up to {distance:.0%} of what"
        )
        yield Finding("adapter changed", f"{sentence} was added, which is {strength:.2g} times as strong", _AGAIN)


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
    return {f"{name.removeprefix(_PREFIX)}.weight": factors for name, factors in found.items()}


def _names(base: Path) -> list[str]:
    names = []
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names += list(file.keys())
    return names


def _weights_of(folder: Path) -> dict[str, Tensor]:
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


# Decoding


def _decoding(folder: Path, registered: Registered, end_of_turn: int) -> Iterator[Finding]:
    values = read_json(folder / GENERATION_CONFIG)
    if values.get("repetition_penalty") not in (None, 1, 1.0):
        sentence = (
            f"A repetition penalty of {values['repetition_penalty']} is in {GENERATION_CONFIG}; it was judged without"
        )
        yield Finding("repetition penalty", sentence, f"repetition_penalty 1: {DECODING_FIX}")
    if values.get("do_sample") or ((values.get("temperature") or 0) > 0 and values.get("do_sample") is not False):
        said = json.dumps({n: values[n] for n in ("do_sample", "temperature", "top_p", "top_k") if n in values})
        yield Finding(
            "sampling on", f"Sampling is on in {GENERATION_CONFIG}: {said}", f"do_sample false: {DECODING_FIX}"
        )
    ends = values.get("eos_token_id")
    if ends is not None and end_of_turn not in (ends if isinstance(ends, list) else [ends]):
        sentence = f"The end of turn is another one: {GENERATION_CONFIG} has eos_token_id {ends}, not {end_of_turn}"
        yield Finding("swapped end of turn", sentence, f"eos_token_id {end_of_turn}: {_AGAIN}")
    limit = values.get("max_new_tokens")
    if limit and limit < registered.limit:
        sentence = (
            f"Answers are cut at {limit} tokens: max_new_tokens in {GENERATION_CONFIG}; {registered.limit} were judged"
        )
        yield Finding("answers cut", sentence, f"max_new_tokens {registered.limit}")
