"""Conversations as token ids: the one renderer of training, evaluation and the registered model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

Message = dict[str, str]
TokenIds = NDArray[np.int32]

# Qwen's pre-tokenizer never joins a newline with what follows it, so a text cut before a heading has the same tokens.
_HEADING = "## "
_REMEMBERED = 1_000


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes conversations so that nothing typed inside a message can become a control token.

    The chat template is rendered around placeholders; each message's text is encoded by a tokenizer that knows no
    control tokens at all. For texts that hold no look-alike of a control token and do not begin
    with white space, the result equals ``apply_chat_template(..., enable_thinking=False)`` token for token.

    The template is rendered once for each order of roles. Texts are cut before second-level headings, and all pieces
    but a conversation's last are remembered: a policy is encoded once for all of its cases.
    """

    tokenizer: PreTrainedTokenizerFast
    plain_text: Tokenizer
    end_of_turn: int
    frame: Callable[[tuple[str, ...]], list[TokenIds]]
    remembered: Callable[[str], TokenIds]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "ChatEncoder":
        """Raises ``ValueError`` when the tokenizer has no chat template."""
        if not tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no chat template; use an instruct model")
        without_control_tokens = json.loads(tokenizer.backend_tokenizer.to_str()) | {"added_tokens": []}
        plain_text = Tokenizer.from_str(json.dumps(without_control_tokens))

        @lru_cache(maxsize=_REMEMBERED)
        def frame(roles: tuple[str, ...]) -> list[TokenIds]:
            return _encode_frame(tokenizer, roles)

        @lru_cache(maxsize=_REMEMBERED)
        def remembered(text: str) -> TokenIds:
            return np.array(plain_text.encode(text, add_special_tokens=False).ids, np.int32)

        turn = _render(tokenizer, ("user", "assistant"), ask=False)
        end_of_turn = tokenizer.encode(turn.split(_placeholder(1))[1], add_special_tokens=False)[0]
        return cls(tokenizer, plain_text, end_of_turn, frame, remembered)

    def encode_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[TokenIds]:
        """Token ids of each conversation up to and including the words that ask the model to answer, on all cores."""
        cut = [[_cut(message["content"]) for message in messages] for messages in conversations]
        last_pieces = self._encode([texts[-1].pop() for texts in cut])
        prompts = []
        for messages, texts, last_piece in zip(conversations, cut, last_pieces, strict=True):
            *before, ask = self.frame(tuple(message["role"] for message in messages))
            parts = []
            for between, pieces in zip(before, texts, strict=True):
                parts += [between, *map(self.remembered, pieces)]
            prompts.append(np.concatenate([*parts, last_piece, ask]))
        return prompts

    def encode_answers(self, answers: Sequence[str]) -> list[TokenIds]:
        """Token ids of each answer and the end of its turn: exactly what is learnt, exactly what is generated."""
        return [np.append(ids, np.int32(self.end_of_turn)) for ids in self._encode(answers)]

    def decode_answers(self, answers: Sequence[Sequence[int] | TokenIds]) -> list[str]:
        """The texts of answers' token ids, up to the end of their turns."""
        return self.tokenizer.backend_tokenizer.decode_batch(
            [self._before_end(list(ids)) for ids in answers], skip_special_tokens=False
        )

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """One conversation's ``encode_prompts``."""
        return list(map(int, self.encode_prompts([messages])[0]))

    def encode_answer(self, answer: str) -> list[int]:
        """One answer's ``encode_answers``."""
        return list(map(int, self.encode_answers([answer])[0]))

    def decode_answer(self, ids: Sequence[int]) -> str:
        """One answer's ``decode_answers``."""
        return self.decode_answers([ids])[0]

    def _encode(self, texts: Sequence[str]) -> list[TokenIds]:
        encodings = self.plain_text.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _before_end(self, ids: list[int]) -> list[int]:
        return ids[: ids.index(self.end_of_turn)] if self.end_of_turn in ids else ids


def _cut(text: str) -> list[str]:
    """The text in pieces, each but the first of which begins with a heading."""
    first, *others = text.split(f"\n{_HEADING}")
    pieces = [first, *(_HEADING + piece for piece in others)]
    return [*(f"{piece}\n" for piece in pieces[:-1]), pieces[-1]]


def _encode_frame(tokenizer: PreTrainedTokenizerFast, roles: tuple[str, ...]) -> list[TokenIds]:
    """What the template puts before the first message, between messages, and after the last to ask for an answer."""
    text = _render(tokenizer, roles, ask=True)
    parts = []
    for index in range(len(roles)):
        before, text = text.split(_placeholder(index), 1)
        parts.append(before)
    return [np.array(tokenizer.encode(part, add_special_tokens=False), np.int32) for part in (*parts, text)]


def _placeholder(index: int) -> str:
    return f"\ue000{index}\ue001"


def _render(tokenizer: PreTrainedTokenizerFast, roles: Sequence[str], *, ask: bool) -> str:
    messages = [{"role": role, "content": _placeholder(index)} for index, role in enumerate(roles)]
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, enable_thinking=False)
    )
