"""Texts as token ids: Qwen's tokenizers are computed by tiktoken, several times faster, where the ids are the same."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import tiktoken
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers.convert_slow_tokenizer import bytes_to_unicode

# How Qwen2 to Qwen3 and Qwen3.5 split texts. With other patterns the two libraries may differ; on these two a test
# compares them for every character.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS_WITH_MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

TokenIds = NDArray[np.int32]
TextEncoder = Callable[[Sequence[str]], list[TokenIds]]

_NORMALIZERS = (None, {"type": "NFC"})
_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_ALTERED_BPE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


# "lowest" with the merges  l+o → lo, lo+w → low, e+s → es, es+t → est, low+est → lowest,  numbered from 256:
#   the tokenizer joins the listed pair that comes first; tiktoken joins the pair whose joined bytes have the lowest id
#   l o w e s t → lo w e s t → low e s t → low es t → low est → lowest: the same order, as ids follow the merges
# tiktoken would also join lo+west, if "west" were a token, which no merge lists. Each token is therefore joined alone,
# from its bytes: what is joined inside a token never depends on its neighbours, so it has no second way to come about.
def text_encoder(tokenizer: Tokenizer) -> TextEncoder:
    """Encodes texts as ``tokenizer`` does if no text is a control token: one array of ids for each.

    By tiktoken, unless the tokenizer's rules are not Qwen's or the ids could differ: those of joined tokens must be in
    the order of the merges, and each token must be joined from its own bytes.
    """
    rules = orjson.loads(tokenizer.to_str()) | {"added_tokens": []}
    pattern = _pattern(rules)
    ranks = _ranks(rules["model"]) if pattern else {}
    if ranks and _joins_every_token(rules["model"], ranks):
        return _by_tiktoken(tiktoken.Encoding("base", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}), rules)
    plain_text = Tokenizer.from_str(orjson.dumps(rules).decode())
    return lambda texts: [
        np.array(found.ids, np.int32) for found in plain_text.encode_batch_fast(texts, add_special_tokens=False)
    ]


def _by_tiktoken(encoding: tiktoken.Encoding, rules: Mapping[str, Any]) -> TextEncoder:
    def encode(text: str) -> TokenIds:
        same = unicodedata.normalize("NFC", text) if rules["normalizer"] else text
        return np.array(encoding.encode_ordinary(same), np.int32)

    return lambda texts: list(map(encode, texts))


def _pattern(rules: Mapping[str, Any]) -> str:
    """The pattern that splits texts into words, if it is one of Qwen's and nothing else changes the text."""
    steps = (rules["pre_tokenizer"] or {}).get("pretokenizers", [])
    if rules["normalizer"] not in _NORMALIZERS or len(steps) != 2 or rules["model"]["type"] != "BPE":
        return ""
    split, level = steps
    pattern = str(split.get("pattern", {}).get("Regex", ""))
    known = _SPLIT.items() <= split.items() and _BYTES.items() <= level.items()
    return pattern if known and pattern in (WORDS, WORDS_WITH_MARKS) else ""


def _ranks(model: Mapping[str, Any]) -> dict[bytes, int]:
    """The ids of bytes and of joined tokens; none where ids are not in the order of merges."""
    if any(model.get(name) for name in _ALTERED_BPE):
        return {}
    vocabulary, as_byte = model["vocab"], {character: byte for byte, character in bytes_to_unicode().items()}
    joined = list(dict.fromkeys("".join(pair) for pair in model["merges"]))
    ids = [vocabulary[token] for token in joined]
    if ids != sorted(ids) or not as_byte.keys() <= vocabulary.keys():
        return {}
    return {bytes(map(as_byte.__getitem__, token)): vocabulary[token] for token in (*as_byte, *joined)}


def _joins_every_token(model: Mapping[str, Any], ranks: Mapping[bytes, int]) -> bool:
    if model["ignore_merges"] and len(ranks) < len(model["vocab"]):
        return False  # words that are tokens without a merge
    merges = [(left, right) for left, right in model["merges"]]
    alone = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges))
    tokens = dict.fromkeys((*bytes_to_unicode().values(), *map("".join, merges)))
    return all(len(found.ids) == 1 for found in alone.encode_batch_fast(list(tokens), add_special_tokens=False))
