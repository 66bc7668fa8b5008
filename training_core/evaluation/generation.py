"""Greedy completions, free or held to a grammar, with one cached copy of a prefix for all prompts that share it."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList

from training_core.base_support import other_attention, tokens_of_a_state
from training_core.config import RunConfig
from training_core.evaluation.constrained import FollowGrammar, gaps
from training_core.evaluation.grammar import AnswerGrammar
from training_core.evaluation.prefix_cache import CachedPrefix, continue_prefixes
from training_core.model_setup import LoadedModel
from training_core.packing.pieces import Group
from training_core.packing.plan import group_by_prefix
from training_core.prompts.chat_templates import end_of_turn


class _Prompt(NamedTuple):
    """The token ids of a prompt in two parts: the prefix that it shares with others, maybe empty, and the rest."""

    number: int
    shared: tuple[int, ...]
    rest: list[int]


class Completion(NamedTuple):
    """An answer's token ids without padding, the probability of its decision (see ``ConstrainedAnswer``; ``None``:
    it has none, or no grammar names the decisions), and whether the grammar changed a token of it."""

    tokens: list[int]
    confidence: float | None = None
    changed: bool = False


def generate(loaded: LoadedModel, prompts: Sequence[list[int]], config: RunConfig) -> list[list[int]]:
    """Greedy completions of prompts without a grammar, as ``complete`` gives them, as token ids."""
    return [completion.tokens for completion in complete(loaded, prompts, config)]


# prompts 0: P·a   1: d   2: P·c   3: e, where P is a prefix of at least 32 tokens
#   → P is computed once, into a cache; batch 1: a and c continue it; batch 2: d and e have no prefix
#   → the completions of 0, 1, 2, 3, each ending with its end-of-turn token or after eval_max_new_tokens
@torch.inference_mode()
def complete(
    loaded: LoadedModel, prompts: Sequence[list[int]], config: RunConfig, grammar: AnswerGrammar | None = None
) -> list[Completion]:
    """Greedy completions of prompts, in the order of the prompts; with a grammar, answers that it allows.

    Known as prefix caching, in batches of similar length: in a batch of at most eval_batch_size no rest is over twice
    as long as the first. A cache is kept only as long as batches continue it. Equal prompts get equal completions.
    """
    # Of the tokenizer alone: an encoder has a table of all tokens, and each call would make and keep one for a while.
    end = end_of_turn(loaded.tokenizer)
    assert end is not None, "its chat template was checked when the rows were encoded"
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=config.eval_max_new_tokens,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = loaded.model.eval()
    completions = [Completion([])] * len(prompts)
    caches: dict[tuple[int, ...], DynamicCache] = {}
    for batch in _batches(_in_order(model, prompts), config.eval_batch_size):
        shared = [prompt.shared for prompt in batch if prompt.shared]
        caches = {tokens: cache for tokens, cache in caches.items() if tokens in shared}  # frees memory first
        caches |= {tokens: cached_prefix(model, tokens) for tokens in dict.fromkeys(shared) if tokens not in caches}
        prefixes = [CachedPrefix(len(list(same)), caches[tokens]) for tokens, same in groupby(shared)]
        inputs = _pad_left(batch, end, model.device)
        follow = FollowGrammar(grammar, len(batch), config.eval_max_new_tokens) if grammar else None
        with continue_prefixes(model, prefixes):
            output = model.generate(
                **inputs, generation_config=greedy, logits_processor=LogitsProcessorList([follow] if follow else [])
            )
        found = _completions(output[:, inputs["input_ids"].shape[1] :].tolist(), end, follow)
        for prompt, completion in zip(batch, found, strict=True):
            completions[prompt.number] = completion
    return completions


def _completions(rows: list[list[int]], end_of_turn: int, follow: FollowGrammar | None) -> list[Completion]:
    whole = [tokens[: tokens.index(end_of_turn) + 1] if end_of_turn in tokens else tokens for tokens in rows]
    if follow is None:
        return [Completion(tokens) for tokens in whole]
    pairs = zip(whole, follow.answers, strict=True)
    return [Completion(tokens, answer.confidence, answer.changed) for tokens, answer in pairs]


@torch.inference_mode()
def logit_gap(
    loaded: LoadedModel, prompt: list[int], completion: list[int], grammar: AnswerGrammar | None = None, limit: int = 0
) -> float:
    """The largest difference, over the tokens of a completion, between the highest logit and the token's own: with a
    grammar, the highest of the tokens that may come in an answer of at most ``limit`` tokens.

    It is 0 for the model's own greedy completion, and near 0 for that of the same model in another precision.
    """
    tokens = torch.tensor([prompt + completion], device=loaded.model.device)
    logits = loaded.model.eval()(input_ids=tokens, logits_to_keep=len(completion) + 1).logits[0, :-1].float()
    if grammar:
        return float(np.max(gaps(grammar, limit, logits, completion)))  # not a number where one is not
    chosen = logits.gather(1, tokens[0, len(prompt) :, None])[:, 0]
    return float((logits.amax(1) - chosen).max())


def _in_order(model: PeftModel, prompts: Sequence[list[int]]) -> list[_Prompt]:
    """Prompts with the same prefix one after the other, shorter rests first; prompts without a prefix last."""
    # The last token is never shared: its logits give the first token of the completion.
    own = tokens_of_a_state(model.get_base_model())
    shareable = [np.array(prompt[:-own], np.int32).tobytes() for prompt in prompts]
    most_rows = 1 if other_attention(model.get_base_model()) else len(prompts)
    groups, alone = group_by_prefix(shareable, most_rows)
    sharing = sorted((_split(prompts, group) for group in groups), key=lambda found: len(found[-1].rest))
    return [prompt for found in (*sharing, _split(prompts, Group(0, alone))) for prompt in found]


def _split(prompts: Sequence[list[int]], group: Group) -> list[_Prompt]:
    rows = sorted(group.rows, key=lambda row: len(prompts[row]))
    return [_Prompt(row, tuple(prompts[row][: group.depth]), prompts[row][group.depth :]) for row in rows]


def _batches(prompts: Sequence[_Prompt], size: int) -> Iterator[list[_Prompt]]:
    """Batches of at most `size` prompts: no rest over twice as long as the first, and all have a prefix or none has."""
    batch: list[_Prompt] = []
    for prompt in prompts:
        if batch and (len(batch) == size or not _fits(prompt, batch[0])):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _fits(prompt: _Prompt, first: _Prompt) -> bool:
    return bool(prompt.shared) == bool(first.shared) and len(prompt.rest) <= 2 * len(first.rest)


@torch.inference_mode()
def cached_prefix(model: PeftModel, tokens: Sequence[int]) -> DynamicCache:
    """The keys and values of a prefix."""
    inputs = torch.tensor([tokens], device=model.device)
    output = model(input_ids=inputs, use_cache=True, logits_to_keep=1)
    # Found by its type: transformers 5.24 renamed past_key_values to cache.
    return next(value for value in output.values() if isinstance(value, DynamicCache))


def _pad_left(prompts: Sequence[_Prompt], padding: int, device: torch.device) -> dict[str, Tensor]:
    """The rests as a left-padded batch [prompts, longest], with the positions they have in the whole prompts."""
    longest = max(len(prompt.rest) for prompt in prompts)
    gaps = [longest - len(prompt.rest) for prompt in prompts]
    rows = [(gap, len(prompt.shared), prompt.rest) for gap, prompt in zip(gaps, prompts, strict=True)]
    inputs = {
        "input_ids": [[padding] * gap + rest for gap, _, rest in rows],
        "attention_mask": [[0] * gap + [1] * len(rest) for gap, _, rest in rows],
        "position_ids": [[0] * gap + list(range(start, start + len(rest))) for gap, start, rest in rows],
    }
    return {name: torch.tensor(values, device=device) for name, values in inputs.items()}
