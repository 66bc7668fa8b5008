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
    ROUNDING,
    Logits,
    Served,
    behind,
    explained,
    largest_gaps,
    likeliest_penalty,
    likeliest_temperature,
)
from training_core.export.edits import edited, edits
from training_core.model_setup import load_base
from training_core.utils import pick_precision

_ALL, _LEAST = 0.99, 0.75  # share of the answers that an explanation of all, or of most, must explain
_NEAR = 0.9  # share of the tokens that weights of the same descent choose as well


@dataclass(frozen=True)
class Explanation:
    """What explains the answers: ``kind`` is one of ``judged``, ``unquantised``, ``base``, ``penalty``, ``prompt``,
    ``edited``, ``sampling``, ``quantised``, ``near`` and ``far``; ``detail`` says more, ``explained`` is the share of
    the answers that it explains.
    """

    kind: str
    detail: str
    explained: float


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
    """The first explanation of all answers, from the likeliest to the strangest; else the best of most answers.

    ``model`` is the adapter as it was judged, ``unquantised`` loads it on the base as released (``None``: it was judged
    so), ``prompts`` are names of prompts that a server may have asked instead, with the answers to them.
    """
    models, seen = [model], [replay(model, answers)]
    own = [Explanation("judged", "", _share(seen[0], answers))]
    if own[0].explained < _ALL and unquantised:
        models.append(unquantised())
        seen.append(replay(models[1], answers))
        own.append(Explanation("unquantised", "", _share(seen[1], answers)))
    if own[-1].explained >= _ALL:
        return own[-1]
    found = []
    for explanation in _others(models, seen, answers, prompts):
        found.append(explanation)
        if explanation.explained >= _ALL:
            return explanation
    best = max(found, key=lambda one: one.explained)
    return best if best.explained >= _LEAST else _unexplained(seen, answers)


def _others(
    models: Sequence[PeftModel], seen: Sequence[Logits], answers: Sequence[Served], prompts: OtherPrompts
) -> Iterator[Explanation]:
    """What may explain the answers, each replayed when it is asked for."""
    for model in models:
        with model.disable_adapter():
            yield Explanation("base", "", _share(replay(model, answers), answers))
    for logits in seen:
        yield from (Explanation("penalty", *found) for found in likeliest_penalty(logits, answers))
    for model in models:
        for name, asked in prompts:
            yield Explanation("prompt", name, _share(replay(model, asked), asked))
    for model in models:
        for name, edit in edits(model):
            with edited(model, edit):
                yield Explanation("edited", name, _share(replay(model, answers), answers))


def _share(logits: Logits, answers: Sequence[Served]) -> float:
    return explained(largest_gaps(logits, answers))


def _unexplained(seen: Sequence[Logits], answers: Sequence[Served]) -> Explanation:
    """Sampling, or how far the answers are from those of the judged adapter."""
    for logits in seen:
        if temperature := likeliest_temperature(logits, answers):
            return Explanation("sampling", f"temperature of about {temperature:g}", 0.0)
    pairs = [zip(logits, answers, strict=True) for logits in seen]
    gaps = [torch.cat([behind(one, served.tokens) for one, served in found]) for found in pairs]
    best = min(gaps, key=lambda found: float((found > ROUNDING).sum()))
    share, most = float((best < ROUNDING).float().mean()), float(best.max())
    kind = "quantised" if most < QUANTISATION else "near" if share >= _NEAR else "far"
    return Explanation(kind, f"{share:.0%} of the tokens are the likeliest, others up to {most:.1f} logits behind", 0.0)
