"""Decoding, replayed on logits: penalties that change which token is the likeliest, and sampling."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Logits that a token may be behind the likeliest: what rounding does in other batches and number formats, and what
# weights in four bits instead of eight or sixteen do to a near tie.
ROUNDING, QUANTISATION = 0.5, 1.0
# Below it a token is the likeliest but for the last bits; at most this far are the two sides of a tie.
EXACT, TIE = 0.05, 0.25

PENALTIES = (*(1 + step / 100 for step in range(1, 21)), *(1.25, 1.3, 1.4, 1.5, 1.75, 2.0))
OUTPUT_PENALTIES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0)
TEMPERATURES = (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5)
_SIGMAS = 3.0  # of a sampled answer's likelihood around its expectation


@dataclass(frozen=True)
class Served:
    """An answer that came back, as token ids, and the prompt that we would have asked it with."""

    prompt: list[int]
    tokens: list[int]


Logits = Sequence[Tensor]  # of each answer [tokens, vocabulary]


def behind(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """How far each token [tokens] is behind the likeliest at its place, in logits."""
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    return logits.amax(1) - chosen


@dataclass(frozen=True)
class Fit:
    """How well logits explain answers: the share without a token that rounding cannot explain, how many tokens are not
    the likeliest, how far they are behind in all, and how far at most."""

    explained: float
    flips: int
    total: float
    most: float


def fit(logits: Logits, answers: Sequence[Served]) -> Fit:
    """How well the tokens of answers follow from logits."""
    gaps = [behind(one, served.tokens) for one, served in zip(logits, answers, strict=True)]
    flipped = torch.cat([found[found > EXACT] for found in gaps])
    most = [float(found.max()) for found in gaps]
    return Fit(sum(one < ROUNDING for one in most) / len(most), len(flipped), float(flipped.sum()), max(most))


Penalty = Callable[[Tensor, Served, float], Tensor]


def repetition_penalty(logits: Tensor, served: Served, value: float) -> Tensor:
    """Logits of all tokens of prompt and answer so far, divided where positive and multiplied where negative.

    Source: Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1, as servers compute it.
    """
    seen = _counts(logits, served.tokens) > 0
    seen[:, served.prompt] = True
    return torch.where(seen, torch.where(logits > 0, logits / value, logits * value), logits)


def presence_penalty(logits: Tensor, served: Served, value: float) -> Tensor:
    """Less for every token that the answer has already."""
    return logits - value * (_counts(logits, served.tokens) > 0)


def frequency_penalty(logits: Tensor, served: Served, value: float) -> Tensor:
    """Less for every time that the answer has a token already."""
    return logits - value * _counts(logits, served.tokens)


def _counts(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """How often each token is in the answer before each place [tokens, vocabulary]."""
    once = torch.zeros_like(logits)
    once[range(len(tokens)), tokens] = 1
    return once.cumsum(0) - once


def likeliest_penalty(logits: Logits, answers: Sequence[Served]) -> Iterator[tuple[str, Fit]]:
    """The values of each kind of penalty that explain the answers best, in words, and how well they do."""
    ways: tuple[tuple[str, Sequence[float], Penalty], ...] = (
        ("repetition_penalty", PENALTIES, repetition_penalty),
        ("presence_penalty", OUTPUT_PENALTIES, presence_penalty),
        ("frequency_penalty", OUTPUT_PENALTIES, frequency_penalty),
    )
    for name, values, penalise in ways:
        found = {}
        for value in values:
            penalised = [penalise(one, served, value) for one, served in zip(logits, answers, strict=True)]
            found[value] = fit(penalised, answers)
        best = min(found.values(), key=lambda one: one.total)
        fitting = [value for value, one in found.items() if one.total <= best.total]
        last = f" to {fitting[-1]:g}" if len(fitting) > 1 else ""
        yield f"{name} of {fitting[0]:g}{last}", best


def likeliest_temperature(logits: Logits, answers: Sequence[Served]) -> float | None:
    """The temperature at which answers drawn from the model are as likely as these are; ``None``: at no temperature."""
    for temperature in TEMPERATURES:
        moments = [_surprise(one, served.tokens, temperature) for one, served in zip(logits, answers, strict=True)]
        excess, variance = (sum(values) for values in zip(*moments, strict=True))
        if abs(excess) < _SIGMAS * math.sqrt(variance + 1e-9):
            return temperature
    return None


def _surprise(logits: Tensor, tokens: Sequence[int], temperature: float) -> tuple[float, float]:
    """How much less likely an answer is than sampled ones on average, as a log, and the variance of that."""
    logs = torch.log_softmax(logits.double() / temperature, 1)
    p = logs.exp()
    entropy = -(p * logs).sum(1)
    own = -logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0]
    variance = (p * logs.square()).sum(1) - entropy.square()
    return float((own - entropy).sum()), float(variance.sum())
