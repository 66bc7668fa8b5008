"""Conversations as token ids: the one renderer of training, evaluation and the registered model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

Message = dict[str, str]


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes conversations so that nothing typed inside a message can become a control token.

    The chat template is rendered around placeholders; each message's text is encoded by a tokenizer that knows no
    control tokens at all. For texts that hold no look-alike of a control token and do not begin
    with white space, the result equals ``apply_chat_template(..., enable_thinking=False)`` token for token.
    """

    tokenizer: PreTrainedTokenizerFast
    plain_text: Tokenizer
    end_of_turn: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "ChatEncoder":
        """Raises ``ValueError`` when the tokenizer has no chat template."""
        if not tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no chat template; use an instruct model")
        without_control_tokens = json.loads(tokenizer.backend_tokenizer.to_str()) | {"added_tokens": []}
        turn = _render(tokenizer, [("user", 0), ("assistant", 1)], ask=False)
        end_of_turn = tokenizer.encode(turn.split(_placeholder(1))[1], add_special_tokens=False)[0]
        return cls(tokenizer, Tokenizer.from_str(json.dumps(without_control_tokens)), end_of_turn)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the messages up to and including the words that ask the model to answer."""
        text = _render(self.tokenizer, [(message["role"], i) for i, message in enumerate(messages)], ask=True)
        ids: list[int] = []
        for i, message in enumerate(messages):
            before, text = text.split(_placeholder(i), 1)
            ids += self.tokenizer.encode(before, add_special_tokens=False)
            ids += self.plain_text.encode(message["content"], add_special_tokens=False).ids
        return ids + self.tokenizer.encode(text, add_special_tokens=False)

    def encode_answer(self, answer: str) -> list[int]:
        """Token ids of the answer and the end of its turn: exactly what is learnt, exactly what is generated."""
        return [*self.plain_text.encode(answer, add_special_tokens=False).ids, self.end_of_turn]

    def decode_answer(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, up to the end of its turn."""
        ids = list(ids)
        end = ids.index(self.end_of_turn) if self.end_of_turn in ids else len(ids)
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _placeholder(index: int) -> str:
    return f"\ue000{index}\ue001"


def _render(tokenizer: PreTrainedTokenizerFast, turns: Sequence[tuple[str, int]], *, ask: bool) -> str:
    messages = [{"role": role, "content": _placeholder(index)} for role, index in turns]
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, enable_thinking=False)
    )
