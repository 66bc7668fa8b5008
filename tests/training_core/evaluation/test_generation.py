"""A shared prefix is computed once, and completions stay the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import ARCHITECTURES, tiny_model
from transformers import DynamicCache
from transformers.utils import ModelOutput

from training_core.config import RunConfig
from training_core.evaluation.generation import generate
from training_core.evaluation.prefix_cache import CachedPrefix, continue_prefixes
from training_core.model_setup import LoadedModel, load_tokenizer
from training_core.prompts import chat_encoding
from training_core.utils import Precision

VOCABULARY = 900
# So wide that every token depends on all before it.
INITIALIZER_RANGE = 0.2


def build(tiny_base: Path, architecture: str = "qwen3", **settings: Any) -> LoadedModel:
    torch.manual_seed(0)
    model = tiny_model(architecture, vocab_size=VOCABULARY, initializer_range=INITIALIZER_RANGE, **settings)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return LoadedModel(adapted.eval(), load_tokenizer(tiny_base), Precision("fp32", ""))


@pytest.fixture(params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tiny_base: Path) -> LoadedModel:
    return build(tiny_base, request.param)


def text(seed: int, tokens: int) -> list[int]:
    return np.random.default_rng(seed).integers(10, VOCABULARY, tokens).tolist()


POLICIES = {seed: text(seed, length) for seed, length in ((1, 70), (2, 45), (3, 90))}
RESTS = ((1, 9), (2, 6), (1, 12), (3, 7), (2, 8), (1, 5), (3, 7), (1, 10))
PROMPTS = [POLICIES[policy] + text(100 + i, tokens) for i, (policy, tokens) in enumerate(RESTS)]
ALONE = [text(50, 33), text(51, 20), text(52, 60)]


def settings(**values: Any) -> RunConfig:
    return RunConfig(eval_max_new_tokens=8, **values)


@torch.inference_mode()
def assert_likeliest(loaded: LoadedModel, prompts: list[list[int]], completions: list[list[int]]) -> None:
    """Every token has the highest logit of the whole prompt computed alone, without a cache, but for ties in fp32."""
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = loaded.model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(completion)[:, None])[:, 0]
        assert (logits.max(1).values - chosen).max() < 1e-4
        assert logits.std() > 0.1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_generation_with_shared_prefixes_equals_whole_prompts(loaded: LoadedModel, batch_size: int) -> None:
    prompts = [*PROMPTS, PROMPTS[0], *ALONE]
    completions = generate(loaded, prompts, settings(eval_batch_size=batch_size))
    assert len({tuple(completion) for completion in completions}) == len(prompts) - 1
    assert completions[0] == completions[len(PROMPTS)]
    assert_likeliest(loaded, prompts, completions)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], ALONE, [[5], [5], [6]], [PROMPTS[0], PROMPTS[0]]])
def test_generation_handles_single_unrelated_short_and_equal_prompts(
    loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    assert_likeliest(loaded, prompts, generate(loaded, prompts, settings()))


def cache_of(output: ModelOutput) -> tuple[str, DynamicCache]:
    """The cache in a model's output and its name, which differs between versions of transformers."""
    return next((name, value) for name, value in output.items() if isinstance(value, DynamicCache))


@torch.inference_mode()
def test_cached_prefix_gives_the_logits_of_whole_rows(loaded: LoadedModel) -> None:
    """In prefill and in decoding, with padding between prefix and row."""
    model, rows = loaded.model, sorted(range(len(PROMPTS)), key=lambda i: RESTS[i][0])
    prefixes = [
        CachedPrefix(sum(policy == own for own, _ in RESTS), cache_of(model(input_ids=torch.tensor([tokens])))[1])
        for policy, tokens in POLICIES.items()
    ]
    longest = max(tokens for _, tokens in RESTS)
    whole = [PROMPTS[row] + text(200 + row, 1) for row in rows]
    rest, mask, positions = [], [], []
    for row, tokens in zip(rows, whole, strict=True):
        start, gap = len(POLICIES[RESTS[row][0]]), longest - RESTS[row][1]
        rest.append([0] * gap + tokens[start:])
        mask.append([0] * gap + [1] * (len(tokens) - start))
        positions.append([0] * gap + list(range(start, len(tokens))))
    ids, seen, at = (torch.tensor(values) for values in (rest, mask, positions))
    with continue_prefixes(model, prefixes):
        read = model(input_ids=ids[:, :-1], attention_mask=seen[:, :-1], position_ids=at[:, :-1], use_cache=True)
        name, cache = cache_of(read)
        grown = model(input_ids=ids[:, -1:], attention_mask=seen, position_ids=at[:, -1:], **{name: cache})
    for i, tokens in enumerate(whole):
        expected = model(input_ids=torch.tensor([tokens])).logits[0, -2:]
        found = torch.stack([read.logits[i, -1], grown.logits[i, -1]])
        assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())


def test_generation_computes_a_prefix_once_in_small_batches(loaded: LoadedModel) -> None:
    shapes: list[tuple[int, ...]] = []
    loaded.model.get_base_model().register_forward_pre_hook(
        lambda _module, _args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    generate(loaded, PROMPTS, settings(eval_batch_size=2))
    assert sorted(shape for shape in shapes if shape[1] > 12) == [(1, 45), (1, 70), (1, 90)]
    assert max(rows for rows, _ in shapes) == 2


def test_generation_with_sliding_windows_reads_whole_prompts(tiny_base: Path) -> None:
    loaded = build(tiny_base, "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert_likeliest(loaded, PROMPTS, generate(loaded, PROMPTS, settings()))


def test_generation_makes_no_encoder(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a table of all tokens: a server that makes one for each answer grows."""
    loaded = build(tiny_base)
    monkeypatch.setattr(chat_encoding, "text_encoder", None)
    assert len(generate(loaded, PROMPTS, settings())) == len(PROMPTS)


def test_generation_leaves_the_attention_as_before(tiny_base: Path) -> None:
    loaded, inputs = build(tiny_base), torch.tensor(PROMPTS[:1])
    before = loaded.model(input_ids=inputs).logits
    generate(loaded, PROMPTS, settings())
    assert torch.equal(loaded.model(input_ids=inputs).logits, before)
