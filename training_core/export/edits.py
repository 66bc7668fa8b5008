"""Edits of an adapter that servers and converters make, for a replay: its matrices become others, and back."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator

import torch
from peft import PeftModel
from torch import Tensor

# Edits of the adapter: its matrices A [rank, in] and B [out, rank] become others.

Matrices = tuple[Tensor, Tensor]
Edit = Callable[[str, Tensor, Tensor], Matrices]


def edits(model: PeftModel) -> Iterator[tuple[str, Edit]]:
    """What servers and converters do to an adapter, by its name in a sentence."""
    config = model.peft_config["default"]
    rank, scale = config.r, config.lora_alpha / config.r
    for cut in (2**power for power in reversed(range(rank.bit_length())) if 2**power < rank):
        yield f"rank cut from {rank} to {cut}", cut_to(cut, 1.0)
        yield f"rank cut from {rank} to {cut} and scaled by lora_alpha / {cut}", cut_to(cut, rank / cut)
        yield f"rank reduced from {rank} to {cut}", reduced_to(cut)
    strengths = {1 / scale: "lora_alpha / lora_r left out", math.sqrt(rank): "rank-stabilised scale"}
    for factor, name in ({0.5: "half its strength", 2.0: "twice its strength"} | strengths).items():
        if abs(factor - 1) > 1e-6:
            yield name, scaled_by(factor)
    yield "only its attention layers", only(r"attn")
    yield "only its MLP layers", only(r"mlp")


def cut_to(rank: int, factor: float) -> Edit:
    """The first rows of A and columns of B."""

    def edit(_: str, a: Tensor, b: Tensor) -> Matrices:
        kept = (torch.arange(a.shape[0], device=a.device) < rank).to(b.dtype)
        return a, b * kept * factor

    return edit


def reduced_to(rank: int) -> Edit:
    """The closest product of that rank, by singular values."""

    def edit(_: str, a: Tensor, b: Tensor) -> Matrices:
        left, first = torch.linalg.qr(b.float())
        right, second = torch.linalg.qr(a.float().T)
        u, s, v = torch.linalg.svd(first @ second.T, full_matrices=False)  # a layer may be narrower than the rank
        s[rank:] = 0
        return (right @ v.T).T.to(a.dtype), (left @ u * s).to(b.dtype)

    return edit


def scaled_by(factor: float) -> Edit:
    def edit(_: str, a: Tensor, b: Tensor) -> Matrices:
        return a, b * factor

    return edit


def only(pattern: str) -> Edit:
    def edit(name: str, a: Tensor, b: Tensor) -> Matrices:
        return a, b if re.search(pattern, name) else torch.zeros_like(b)

    return edit


@contextlib.contextmanager
def edited(model: PeftModel, edit: Edit) -> Iterator[None]:
    """The adapter with edited matrices, as it was afterwards."""
    weights = dict(model.named_parameters())
    before = {name: weight.data for name, weight in weights.items() if ".lora_" in name}
    try:
        for name in [name for name in before if ".lora_A." in name]:
            other = name.replace(".lora_A.", ".lora_B.")
            weights[name].data, weights[other].data = edit(name, before[name], before[other])
        yield
    finally:
        for name, data in before.items():
            weights[name].data = data
