"""Answers, replays and gradients of models on a stand-in card, compared with the same on the CPU.

`python -m computed_on_a_card OUT BASE …` writes to the file OUT what differs for each base. In 16 or 32 bits: the
kernels of four bits are bitsandbytes' own for each device.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from packed_training import packed, random_rows
from stand_in_card import CARD, insert_card, move_to_card, use_card

from training_core.config import RunConfig
from training_core.dataset.answer_schema import schema_of_answers
from training_core.evaluation.generation import complete, logit_gap
from training_core.evaluation.grammar import AnswerGrammar
from training_core.export.decoding import Served, fit, likeliest_penalty, likeliest_temperature
from training_core.export.edits import edited, edits
from training_core.export.replay import replay
from training_core.model_setup import LoadedModel, load_model_and_tokenizer
from training_core.packing.attention import use_shared_prefix_attention
from training_core.packing.plan import collate_pack

ANSWERS = [{"decision": name, "reason": "r"} for name in ("Yes", "No", "Not yet")]
PROMPTS = [*([*range(10, 60), number, 3] for number in (1, 2, 3, 4)), [5, 6, 7], [8, 9, 10, 11]]


def load(config: RunConfig) -> LoadedModel:
    loaded = load_model_and_tokenizer(config)
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return loaded


def computed(loaded: LoadedModel, config: RunConfig, device: str) -> dict[str, Any]:
    """What is computed with a model on its device, by name."""
    grammar = AnswerGrammar.of(schema_of_answers(ANSWERS), loaded.tokenizer)
    held = complete(loaded, PROMPTS, config, grammar)
    answers = [Served(prompt, one.tokens) for prompt, one in zip(PROMPTS, held, strict=True)]
    limit = config.eval_max_new_tokens
    return {
        "free answers": complete(loaded, PROMPTS, config),
        "held answers": held,
        "logit gaps": [logit_gap(loaded, one.prompt, one.tokens, grammar, limit) for one in answers],
        "replays": replayed(loaded, answers),
        "gradients": gradients(loaded, device),
    }


def replayed(loaded: LoadedModel, answers: list[Served]) -> list[torch.Tensor]:
    """The logits; what is made of them is computed, but not compared: near a threshold it may change."""
    logits = replay(loaded.model, answers)
    list(likeliest_penalty(logits, answers))
    likeliest_temperature(logits, answers)
    for _, edit in edits(loaded.model):
        with edited(loaded.model, edit):
            fit(replay(loaded.model, answers), answers)
    return [one.cpu() for one in logits]


def gradients(loaded: LoadedModel, device: str) -> list[torch.Tensor]:
    """Of a pack of rows that share prefixes."""
    use_shared_prefix_attention(loaded.model)
    pack = collate_pack([packed(random_rows(3))[0]])
    inputs = {name: value.to(device) for name, value in pack.items() if name != "labels"}
    loaded.model.train()(**inputs).logits.float().square().mean().backward()
    found = [weight.grad.cpu() for weight in loaded.model.parameters() if weight.requires_grad]
    loaded.model.zero_grad()
    return found


def differences(config: RunConfig) -> list[str]:
    """The names of what a card computes otherwise than the CPU."""
    loaded = load(config)
    expected = computed(loaded, config, "cpu")
    with use_card():
        move_to_card(loaded.model)
        found = computed(loaded, config, CARD)
    return [name for name, value in expected.items() if not equal(found[name], value)]


def equal(found: Any, expected: Any) -> bool:
    """Numbers nearly so: the CPU has a kernel of attention of its own."""
    if isinstance(expected, torch.Tensor | float):
        return torch.allclose(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-3, atol=1e-4)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return bool(found == expected)


if __name__ == "__main__":
    out, *bases = sys.argv[1:]
    insert_card()
    settings = {"eval_max_new_tokens": 24, "lora_dropout": 0}
    cases = {base: RunConfig(model_name=base, quantisation="none", **settings) for base in bases}
    Path(out).write_text(json.dumps({case: differences(config) for case, config in cases.items()}))
