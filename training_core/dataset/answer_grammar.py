"""The grammar that holds answers to a form: which tokens may come next, for any tokenizer of a base.

llguidance computes the masks (https://github.com/guidance-ai/llguidance).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from transformers import PreTrainedTokenizerFast

from training_core.dataset.answer_schema import DECISION, Schema
from training_core.prompts.chat_templates import end_of_turn

# Answers are written as training renders them: json.dumps(..., ensure_ascii=False) writes these escapes, and \u only
# for characters that no text needs.
_AS_RENDERED: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}
# In the order in which they bring an unfinished answer to its end; 1, because -0.00 is not the end of a number.
_CLOSERS = ('"', "}", "]", ",", "1")
_CHARACTER = 8  # tokens that end an escape, a character of several bytes or a number


@dataclass(frozen=True)
class AnswerGrammar:
    """The answers of a schema in the tokens of one tokenizer; each ends with ``end_of_turn``.

    ``decisions``: those that the schema allows; none where it names none. An unfinished answer is brought to its end in
    at most ``longest_ending`` tokens. One more token can take it further from its end by ``growth`` tokens, those of a
    field with other values in it, besides a decision or a character; ``flat``: none is.
    """

    first: LLMatcher
    tokens: LLTokenizer
    end_of_turn: int
    closers: tuple[int, ...]
    decisions: tuple[str, ...]
    flat: bool
    growth: int
    longest_ending: int

    @classmethod
    def of(cls, schema: Schema, tokenizer: PreTrainedTokenizerFast) -> "AnswerGrammar":
        """The grammar of a schema; raises ``ValueError`` where llguidance does not know what is in it."""
        end = end_of_turn(tokenizer)
        tokens = LLTokenizer(tokenizer.backend_tokenizer.to_str(), n_vocab=len(tokenizer), eos_token=end)
        text = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_AS_RENDERED)
        if problem := LLMatcher.validate_grammar(text, tokens):
            raise ValueError(f"expected a JSON schema that can be followed, got {problem}")
        known, objects = _examples(schema), schema.get("anyOf", [schema])
        fields = [field for one in objects for field in one.get("properties", {}).values()]
        named = {text: None for one in objects for text in one.get("properties", {}).get(DECISION, {}).get("enum", ())}
        nested = [len(tokens.tokenize_str(_example(field, known))) for field in fields if not _is_flat(field)]
        longest = max((len(tokens.tokenize_str(_example(one, known))) for one in objects), default=0)
        return cls(
            first=LLMatcher(tokens, text, log_level=0),
            tokens=tokens,
            end_of_turn=int(end or 0),
            closers=tuple(tokens.greedy_tokenize(closer)[0] for closer in _CLOSERS),
            decisions=tuple(named),
            flat=len(objects) == 1 and bool(fields) and not nested,
            growth=2 * max(nested, default=0) + (0 if fields and len(objects) == 1 else longest),
            longest_ending=2 * longest + _CHARACTER,
        )

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens are a whole answer with its end of turn."""
        return self.start().validate_tokens(list(tokens)) == len(tokens)

    def start(self) -> LLMatcher:
        """What follows one answer, from its beginning."""
        return self.first.deep_copy()

    @cached_property
    def room(self) -> int:
        """The tokens by which an answer can get further from its end while it may still grow."""
        decision = max((len(json.dumps(name)) for name in self.decisions), default=0)
        return decision + _CHARACTER + self.growth

    def ending(self, matcher: LLMatcher) -> list[int]:
        """Tokens that complete the answer from where ``matcher`` is: it closes what is open as soon as it may."""
        ahead = matcher.deep_copy()
        found: list[int] = []
        while found[-1:] != [self.end_of_turn] and len(found) <= self.longest_ending:
            more = self._towards_end(ahead)
            ahead.consume_tokens(more)
            found += more
        return found

    def _towards_end(self, matcher: LLMatcher) -> list[int]:
        allowed = matcher.compute_bitmask()
        for token in (self.end_of_turn, *self.closers):
            if allowed[token >> 3] >> (token & 7) & 1:
                return [token]
        return matcher.compute_ff_tokens() or [int(bits(allowed)[0])]


def bits(mask: bytes) -> np.ndarray:
    """The numbers of the bits that are set in a mask."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))


def _is_flat(schema: Schema) -> bool:
    return "anyOf" not in schema and "$ref" not in schema and schema.get("type") not in ("object", "array")


def _example(schema: Schema, known: dict[str, str]) -> str:
    """A short answer of the schema, of its longest alternatives: no other needs more tokens after its last text.

    ``known`` has those of the definitions.
    """
    if "$ref" in schema:
        return known[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return max((_example(one, known) for one in schema["anyOf"]), key=len)
    if "enum" in schema:
        return max((json.dumps(value, ensure_ascii=False) for value in schema["enum"]), key=len)
    if schema["type"] == "object":
        fields = schema["properties"] if "properties" in schema else {"x": schema["additionalProperties"]}
        return f"{{{', '.join(f'{json.dumps(name)}: {_example(field, known)}' for name, field in fields.items())}}}"
    if schema["type"] == "array":
        return f"[{_example(schema['items'], known) if 'items' in schema else ''}]"
    return {"string": '"x"', "boolean": "false", "null": "null"}.get(schema["type"], "-1.5")


def _examples(schema: Schema) -> dict[str, str]:
    """The example of each definition. The last one refers to none, each other one to the next."""
    found: dict[str, str] = {}
    for name, one in reversed(schema.get("$defs", {}).items()):
        found[name] = _example(one, found)
    return found
