"""Packs of a plan are divided into smaller ones: for several devices, and for less memory."""

import math
from collections.abc import Sequence
from itertools import chain

import torch

from training_core.packing.pieces import Pack, distribute, share, tokens_of
from training_core.packing.plan import PackingPlan

# The packs that a pack of the plan is divided into: one after the other, each time one for every device.
Unit = Sequence[Sequence[Pack]]

# Fewer tokens at once take longer each.
_FEWEST_TOKENS = {"cpu": 1024, "cuda": 8192}
_MOST_IDLE = 0.05


def divide(plan: PackingPlan, devices: int, batch_tokens: int | None = None) -> list[Unit]:
    """Divide each pack of a plan, so that all devices compute in every step, and with no more memory than is useful.

    Which rows make a step stays as it is. For the devices a piece may be cut, so that a prefix is computed on several;
    for memory only with `batch_tokens`, the tokens to compute at once.
    """
    loads = [share(pack, plan.lengths, _shares(plan.packs_per_step, devices)) for pack in plan.packs]
    turns = math.ceil(max(map(tokens_of, chain.from_iterable(loads))) / batch_tokens) if batch_tokens else _turns(loads)
    divided = (
        [share(load, plan.lengths, turns) if batch_tokens else distribute(load, turns) for load in unit]
        for unit in loads
    )
    return [list(zip(*unit, strict=True)) for unit in divided]


def _shares(packs_per_step: int, devices: int) -> int:
    """The fewest parts of a pack with which the packs of a step divide about evenly among the devices."""

    def idle(parts: int) -> float:
        packs = packs_per_step * parts
        return 1 - packs / (devices * math.ceil(packs / devices))

    return next(parts for parts in range(1, devices + 1) if parts == devices or idle(parts) <= _MOST_IDLE)


def _turns(loads: Sequence[Sequence[Pack]]) -> int:
    """Into how many packs of whole pieces a device's load divides."""
    filled = [load for unit in loads for load in unit if load]
    tokens, largest = (sum(map(count, filled)) / len(filled) for count in (tokens_of, _largest))
    fewest = _FEWEST_TOKENS["cuda" if torch.cuda.is_available() else "cpu"]
    return max(1, round(tokens / max(largest, fewest)))


def _largest(pack: Pack) -> int:
    return max(piece.tokens for piece in pack)
