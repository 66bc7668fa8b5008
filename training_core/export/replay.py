"""What weights and which decoding give the answers that came back: they are replayed, token by token.

A greedy answer is the likeliest token at each place, given the tokens before it. So each explanation of an answer can
be tested in one forward pass: under the true one no token is far behind the likeliest.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from training_core.base_weights import text_prefix
from training_core.export.decoding import (
    QUANTISATION,
    TIE,
    Fit,
    Logits,
    Served,
    fit,
    likeliest_penalty,
    likeliest_temperature,
)
from training_core.export.edits import edited, edits
from training_core.model_setup import load_base
from training_core.utils import pick_precision

_FLIPS = 3  # tokens that are not the likeliest, from which on something else than chance is looked for
_MOST, _BETTER, _CLEARLY_BETTER = (
    0.8,
    5,
    50,
)  # what explains so large a share of the answers, and that many times better, is the cause
_NEAR = 0.9  # share of the tokens that weights of the same descent choose as well


@dataclass(frozen=True)
class Explanation:
    """What explains the answers: ``kind`` is one of ``judged``, ``unquantised``, ``base``, ``penalty``, ``prompt``,
    ``edited``, ``quantised``, ``near`` and ``far``; ``detail`` says more.
    """

    kind: str
    detail: str = ""


OtherPrompts = Sequence[tuple[str, Sequence[Served]]]


def device() -> dict[str, int | str]:
    """Where models are put, as ``load_base`` puts them."""
    return {"": torch.cuda.current_device()} if torch.cuda.is_available() else {"": "cpu"}


def load_unquantised(base: Path, adapter: Path) -> PeftModel:
    """An adapter on its base as released, in the number format of this machine."""
    model = load_base(base, pick_precision("auto"), "none")
    names = {f"^{re.escape(text_prefix(base))}": "model."}
    adapted: PeftModel = PeftModel.from_pretrained(model, adapter, key_mapping=names)
    return adapted.eval()


@torch.inference_mode()
def replay(model: PeftModel, answers: Sequence[Served]) -> Logits:
    """The logits at each token of each answer."""
    found = []
    for served in answers:
        tokens = torch.tensor([served.prompt + served.tokens], device=model.device)
        output = model(input_ids=tokens, logits_to_keep=len(served.tokens) + 1)
        found.append(output.logits[0, :-1].float())
    return found


def explain(
    model: PeftModel, unquantised: Callable[[], PeftModel] | None, answers: Sequence[Served], prompts: OtherPrompts = ()
) -> Explanation:
    """What explains the answers best: the judged adapter unless something else does so far better.

    ``model`` is the adapter as it was judged, ``unquantised`` loads it on the base as released (``None``: it was judged
    so), ``prompts`` are names of prompts that a server may have asked instead, with the answers to them.
    """
    models, seen, kinds = [model], [replay(model, answers)], ["judged", "unquantised"]
    if unquantised and fit(seen[0], answers).flips:
        models.append(unquantised())
        seen.append(replay(models[1], answers))
    fits = [fit(logits, answers) for logits in seen]
    own = min(fits, key=lambda one: (-one.explained, one.total))
    if own.flips >= _FLIPS and (better := _better(own, _others(models, seen, answers, prompts))):
        return better
    if own.explained == 1.0:
        return Explanation(kinds[fits.index(own)])
    return _unexplained(own, seen, answers)


def _better(own: Fit, others: Iterator[tuple[Explanation, Fit]]) -> Explanation | None:
    """The first explanation that leaves nothing, or else the one that leaves least and far less than ``own``."""
    found = []
    for explanation, other in others:
        if other.explained >= _MOST and other.total < own.total / _BETTER:
            found.append((other.total, explanation))
        if other.total < own.total / _CLEARLY_BETTER:
            break
    return min(found, key=lambda one: one[0])[1] if found else None


def own_gap(model: PeftModel, unquantised: Callable[[], PeftModel] | None, answers: Sequence[Served]) -> float:
    """How far tokens are behind the likeliest of the judged adapter, at most, on the base of the two that fits best."""
    first = fit(replay(model, answers), answers).most
    return first if first < TIE or not unquantised else min(first, fit(replay(unquantised(), answers), answers).most)


def _others(
    models: Sequence[PeftModel], seen: Sequence[Logits], answers: Sequence[Served], prompts: OtherPrompts
) -> Iterator[tuple[Explanation, Fit]]:
    """What else may explain the answers, from the likeliest to the strangest, each replayed when it is asked for."""
    for model in models:
        with model.disable_adapter():
            yield Explanation("base"), fit(replay(model, answers), answers)
    penalties = [found for logits in seen for found in likeliest_penalty(logits, answers)]
    for name, found in sorted(penalties, key=lambda penalty: penalty[1].total):
        yield Explanation("penalty", name), found
    for model in models:
        for name, asked in prompts:
            yield Explanation("prompt", name), fit(replay(model, asked), asked)
    for model in models:
        for name, edit in edits(model):
            with edited(model, edit):
                yield Explanation("edited", name), fit(replay(model, answers), answers)


def _unexplained(own: Fit, seen: Sequence[Logits], answers: Sequence[Served]) -> Explanation:
    """How far the answers are from those of the judged adapter; drawn ones have a temperature."""
    tokens = sum(len(served.tokens) for served in answers)
    share = 1 - own.flips / tokens
    detail = f"{share:.0%} of the tokens are the likeliest, others up to {own.most:.1f} logits behind"
    temperatures = [likeliest_temperature(logits, answers) for logits in seen]
    drawn = next((f"; as likely as drawn at temperature {one:g}" for one in temperatures if one), "")
    kind = "quantised" if own.most < QUANTISATION else "near" if share >= _NEAR or drawn else "far"
    return Explanation(kind, detail + drawn)
