"""Conversations as token ids, rendered the same way in training, evaluation and serving."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerFast

from training_core.config import SettingsError
from training_core.prompts.byte_pairs import TextEncoder, text_encoder
from training_core.prompts.byte_pairs import TokenIds as TokenIds
from training_core.prompts.chat_templates import end_of_turn, placeholder, render, require_usable_template

Message = dict[str, str]

# Qwen's pre-tokenizer never joins a newline and a following "#", so a text split before headings has the same tokens.
_HEADING = "## "
_ANSWER = '{"decision": "Not Eligible", "reason": "Day 31 > 30."}'
_CACHE_SIZE = 1_000
# The tokenizer takes up to 300 bytes per character of what it encodes at once (measured on 2026-11-28).
_CHARACTERS_AT_ONCE = 2**20


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes conversations so that no text of a message can become a control token (no prompt injection).

    The chat template is rendered around placeholders, and each text is encoded by a tokenizer without control tokens.
    For texts that contain no look-alike of a control token and do not begin with white space, the result equals
    ``apply_chat_template(..., enable_thinking=False)`` token for token.

    Two caches save time: the template's tokens per sequence of roles, and the tokens of pieces of texts. Texts are
    split before second-level headings, and all pieces but the last of a conversation are cached, so a policy is encoded
    once for all of its cases. Memory is bounded: a text of more than ``_CHARACTERS_AT_ONCE`` is encoded in parts.
    """

    tokenizer: PreTrainedTokenizerFast
    encode_texts: TextEncoder
    end_of_turn: int
    template_ids: Callable[[tuple[str, ...]], list[TokenIds]]
    piece_ids: Callable[[str], TokenIds]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "ChatEncoder":
        """The encoder of a tokenizer; raises ``SettingsError`` if it or its chat template cannot be used."""
        require_usable_template(tokenizer)
        encode_texts = text_encoder(tokenizer.backend_tokenizer)

        @lru_cache(maxsize=_CACHE_SIZE)
        def template_ids(roles: tuple[str, ...]) -> list[TokenIds]:
            return _encode_template(tokenizer, roles)

        @lru_cache(maxsize=_CACHE_SIZE)
        def piece_ids(text: str) -> TokenIds:
            return np.concatenate([encode_texts([part])[0] for part in _parts(text)])

        end = end_of_turn(tokenizer)
        assert end is not None, "a usable template ends an answer"
        encoder = cls(tokenizer, encode_texts, end, template_ids, piece_ids)
        encoder._require_round_trip()
        return encoder

    def _require_round_trip(self) -> None:
        """Where a plain answer does not come back from its tokens, no row's would: the rows are not to blame."""
        found = self.decode_answer(self.encode_answer(_ANSWER))
        if found != _ANSWER:
            what = f"the tokenizer of {self.tokenizer.name_or_path!r} makes {found[:60]!r} of {_ANSWER!r}"
            raise SettingsError([f"model_name: {what}; give a base with the tokenizer that it was released with"])

    def encode_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[TokenIds]:
        """Token ids of each conversation, including the generation prompt."""
        split = [[_split(message["content"]) for message in messages] for messages in conversations]
        last_pieces = self._encode([texts[-1].pop() for texts in split])
        prompts = []
        for messages, texts, last_piece in zip(conversations, split, last_pieces, strict=True):
            *before_each, generation_prompt = self.template_ids(tuple(message["role"] for message in messages))
            parts = []
            for before, pieces in zip(before_each, texts, strict=True):
                parts += [before, *map(self.piece_ids, pieces)]
            prompts.append(np.concatenate([*parts, last_piece, generation_prompt]))
        return prompts

    def encode_answers(self, answers: Sequence[str]) -> list[TokenIds]:
        """Token ids of each answer and its end-of-turn token, as trained on and as generated."""
        return [np.append(ids, np.int32(self.end_of_turn)) for ids in self._encode(answers)]

    def decode_answers(self, answers: Sequence[Sequence[int] | TokenIds]) -> list[str]:
        """The text of each answer's token ids, up to its end-of-turn token."""
        return self.tokenizer.backend_tokenizer.decode_batch(
            [self._before_end(list(ids)) for ids in answers], skip_special_tokens=False
        )

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """``encode_prompts`` for one conversation."""
        return list(map(int, self.encode_prompts([messages])[0]))

    def encode_answer(self, answer: str) -> list[int]:
        """``encode_answers`` for one answer."""
        return list(map(int, self.encode_answers([answer])[0]))

    def decode_answer(self, ids: Sequence[int]) -> str:
        """``decode_answers`` for one answer."""
        return self.decode_answers([ids])[0]

    def _encode(self, texts: Sequence[str]) -> list[TokenIds]:
        parts = [(place, part) for place, text in enumerate(texts) for part in _parts(text)]
        found: list[list[TokenIds]] = [[] for _ in texts]
        for batch in _batches(parts):
            for (place, _), ids in zip(batch, self.encode_texts([part for _, part in batch]), strict=True):
                found[place].append(ids)
        return [ids[0] if len(ids) == 1 else np.concatenate(ids) for ids in found]

    def _before_end(self, ids: list[int]) -> list[int]:
        return ids[: ids.index(self.end_of_turn)] if self.end_of_turn in ids else ids


def _split(text: str) -> list[str]:
    r"""The text split before headings: ``"a\n## B\nb"`` → ``["a\n", "## B\nb"]``."""
    first, *others = text.split(f"\n{_HEADING}")
    pieces = [first, *(_HEADING + piece for piece in others)]
    return [*(f"{piece}\n" for piece in pieces[:-1]), pieces[-1]]


def _parts(text: str) -> list[str]:
    starts = range(0, max(len(text), 1), _CHARACTERS_AT_ONCE)
    return [text[start : start + _CHARACTERS_AT_ONCE] for start in starts]


def _batches(parts: Sequence[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """The parts in order, in batches of fewer than two times ``_CHARACTERS_AT_ONCE``."""
    batch: list[tuple[int, str]] = []
    characters = 0
    for item in parts:
        batch.append(item)
        characters += len(item[1])
        if characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode_template(tokenizer: PreTrainedTokenizerFast, roles: tuple[str, ...]) -> list[TokenIds]:
    """Tokens of the template before the first message, between messages, and after the last (generation prompt)."""
    text = render(tokenizer, roles, ask=True)
    parts = []
    for index in range(len(roles)):
        before, text = text.split(placeholder(index), 1)
        parts.append(before)
    return [np.array(tokenizer.encode(part, add_special_tokens=False), np.int32) for part in (*parts, text)]
