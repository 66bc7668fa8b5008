"""Texts have the tokenizer's own ids, whichever library computes them."""

import json
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from samples import qwen_vocabulary
from samples.tiny_base import TINY_QWEN
from training_core.model_setup import load_tokenizer
from training_core.prompts.byte_pairs import WORDS, WORDS_WITH_MARKS, text_encoder

Rules = dict[str, Any]


def tiny_rules() -> Rules:
    rules: Rules = json.loads(load_tokenizer(TINY_QWEN).backend_tokenizer.to_str())
    return rules


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@pytest.mark.parametrize("pattern", [WORDS, WORDS_WITH_MARKS], ids=["Qwen2", "Qwen3.5"])
def test_every_character_has_the_ids_of_the_tokenizer(pattern: str) -> None:
    rules = json.loads(qwen_vocabulary.build().backend_tokenizer.to_str())
    rules["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    assert used_library(tokenizer) == "tiktoken"
    # Unassigned planes and private ones are alike in all their characters.
    codes = (*range(0xD800), *range(0xE000, 0x40000), *range(0x40000, 0x110000, 997))
    around = [f"a{c}1 {c}'{c}\n" for c in map(chr, codes)]
    encode = text_encoder(tokenizer)
    for start in range(0, len(around), 1_000):
        text = "".join(around[start : start + 1_000])
        assert [list(ids) for ids in encode([text])] == ids_of(tokenizer, [text])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(), max_size=5))
def test_any_texts_have_the_ids_of_the_tokenizer(texts: list[str]) -> None:
    assert [list(ids) for ids in ENCODE(texts)] == ids_of(PLAIN, texts)


def test_control_tokens_in_texts_are_plain_text() -> None:
    ids = list(ENCODE(["<|im_end|>"])[0])
    assert len(ids) > 1
    assert load_tokenizer(TINY_QWEN).decode(ids) == "<|im_end|>"


def used_library(tokenizer: Tokenizer) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "Encoding", Mock(side_effect=tiktoken.Encoding))
        text_encoder(tokenizer)
        return "tiktoken" if tiktoken.Encoding.called else "tokenizers"  # type: ignore[attr-defined]


def drop_out(rules: Rules) -> None:
    rules["model"]["dropout"] = 0.0001


def lower_case(rules: Rules) -> None:
    rules["normalizer"] = {"type": "Lowercase"}


def split_otherwise(rules: Rules) -> None:
    rules["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|")


def number_otherwise(rules: Rules) -> None:
    vocabulary, merges = rules["model"]["vocab"], rules["model"]["merges"]
    first, second = ("".join(pair) for pair in merges[:2])
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def add_a_second_way(rules: Rules) -> None:
    """Of the text zqx the tokenizer makes z and qx, as no merge joins these; tiktoken would make zqx of them."""
    model = rules["model"]
    for left, right in (("q", "x"), ("z", "q"), ("zq", "x")):
        model["vocab"][left + right] = len(model["vocab"])
        model["merges"].append([left, right])


@pytest.mark.parametrize("alter", [drop_out, lower_case, split_otherwise, number_otherwise, add_a_second_way])
def test_tokenizers_with_other_rules_keep_their_ids(alter: Callable[[Rules], None]) -> None:
    rules = tiny_rules()
    assert used_library(Tokenizer.from_str(json.dumps(rules))) == "tiktoken"
    alter(rules)
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    assert used_library(tokenizer) == "tokenizers"
    texts = ["Zqx zqx 1234 the theory", "qx zq ÄÖ"]
    if alter is not drop_out:
        assert [list(ids) for ids in text_encoder(tokenizer)(texts)] == ids_of(tokenizer, texts)


PLAIN = Tokenizer.from_str(json.dumps(tiny_rules() | {"added_tokens": []}))
ENCODE = text_encoder(load_tokenizer(TINY_QWEN).backend_tokenizer)
