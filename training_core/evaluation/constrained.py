"""Answers that a grammar holds to a form while they are generated, each complete within its limit of tokens."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training_core.dataset.answer_schema import DECISION
from training_core.evaluation.grammar import AnswerGrammar, bits

_PARTS = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|$)|[{}\[\]]', re.DOTALL)
_DECISION_KEY = f'"{DECISION}"'.encode()
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class _Step(NamedTuple):
    """A token of the decision: the length of the text before it, the tokens that could follow, their probabilities."""

    place: int
    options: np.ndarray
    probabilities: np.ndarray


class ConstrainedAnswer:
    """One answer as it grows, at most ``limit`` tokens long.

    ``changed``: the grammar has put another token in the place of the model's likeliest one; without it the answer
    would be the same until then.
    """

    def __init__(self, grammar: AnswerGrammar, limit: int) -> None:
        self.grammar, self.left = grammar, limit
        self.changed = False
        self.is_complete = False
        self._matcher = grammar.start()
        self._text = b""
        self._decision: bytes | None = None
        self._steps: list[_Step] = []
        self._ending: list[int] = []
        self._next_check = grammar.longest_ending + grammar.room

    def options(self, likeliest: int) -> np.ndarray | None:
        """The tokens that may come next; ``None``: the model's likeliest may, and which others may does not matter."""
        deciding = self._is_of_decision(likeliest)
        if not deciding and self._is_ending():
            return np.array(self._ending[:1])
        if not deciding and self.allows(likeliest):
            return None
        return bits(self._matcher.compute_bitmask())

    def allows(self, token: int) -> bool:
        """Whether a token may come next; embeddings can have more rows than there are tokens."""
        if token == self.grammar.end_of_turn:  # which llguidance does not validate
            return self._matcher.is_accepting()
        return token < self.grammar.tokens.vocab_size and bool(self._matcher.validate_tokens([token]))

    def choose(self, likeliest: int, scores: Tensor) -> int:
        """The next token: the likeliest of those that may come, by the model's ``scores`` [vocabulary]."""
        options = self.options(likeliest)
        token = likeliest
        if options is not None:
            of_options = scores[torch.from_numpy(options).to(scores.device)].float().cpu()
            token = int(options[int(of_options.argmax())])
            if self._is_of_decision(token):
                self._steps.append(_Step(len(self._text), options, of_options.softmax(0).numpy()))
        self.changed |= token != likeliest
        self.take(token)
        return token

    def take(self, token: int) -> None:
        """Let the answer grow by a token."""
        self._matcher.consume_token(token)
        self._ending = self._ending[1:] if self._ending[:1] == [token] else []
        self.left -= 1
        self.is_complete = token == self.grammar.end_of_turn
        self._text += self._piece(token)
        if self._decision is None and self.grammar.decisions:
            whole = _VALUE.match(decision_value(self._text) or b"")
            self._decision = whole and whole[0]

    @property
    def confidence(self) -> float | None:
        """The probability of the decision: the product over its tokens of the share, among the tokens that the grammar
        allows, of those that agree with it. ``None``: the grammar names no decisions, or the answer has none.
        """
        if self._decision is None:
            return None
        shares = [step.probabilities[self._agreeing(step, self._decision)].sum() for step in self._steps]
        return float(min(1.0, np.prod(shares)))

    def _agreeing(self, step: _Step, decision: bytes) -> list[bool]:
        values = [decision_value(self._text[: step.place] + self._piece(token)) for token in step.options.tolist()]
        return [value is None or decision.startswith(value[: len(decision)]) for value in values]

    def _is_of_decision(self, token: int) -> bool:
        """Whether a token as the next one would be, at least in part, in the value of the decision."""
        if self._decision is not None or not self.grammar.decisions:
            return False
        return decision_value(self._text + self._piece(token)) is not None

    def _is_ending(self) -> bool:
        """Whether the tokens that are left are needed to complete the answer."""
        if not self._ending and self.left <= self._next_check:
            ending = self.grammar.ending(self._matcher)
            spare = self.left - len(ending) - self.grammar.room
            self._next_check = self.left - (spare if self.grammar.flat else 1)
            self._ending = ending if spare <= 0 else []
        return bool(self._ending)

    def _piece(self, token: int) -> bytes:
        return self.grammar.tokens.decode_bytes([token]) if token < self.grammar.tokens.vocab_size else b""


def decision_value(text: bytes) -> bytes | None:
    """What an unfinished answer has from the value of its decision on; ``None`` before that."""
    depth = 0
    for part in _PARTS.finditer(text):
        depth += part[0] in (b"{", b"[")
        depth -= part[0] in (b"}", b"]")
        if depth == 1 and part[0] == _DECISION_KEY and text[part.end() : part.end() + 2] == b": ":
            value = text[part.end() + 2 :]
            return value or None
    return None


class FollowGrammar:
    """A logits processor of ``transformers.generate`` that gives every row of a batch its ``ConstrainedAnswer``."""

    def __init__(self, grammar: AnswerGrammar, rows: int, limit: int) -> None:
        self.answers = [ConstrainedAnswer(grammar, limit) for _ in range(rows)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores`` [rows, vocabulary] with the chosen token as the likeliest; all are as they were where it was."""
        likeliest = scores.argmax(1).tolist()
        chosen = [
            token if answer.is_complete else answer.choose(token, row)
            for answer, token, row in zip(self.answers, likeliest, scores, strict=True)
        ]
        changed = [row for row, pair in enumerate(zip(likeliest, chosen, strict=True)) if pair[0] != pair[1]]
        if changed:
            scores[changed] = -torch.inf
            scores[changed, [chosen[row] for row in changed]] = 0.0
        return scores


def gaps(grammar: AnswerGrammar, limit: int, logits: Tensor, completion: Sequence[int]) -> list[float]:
    """How far each token of a completion is behind the likeliest that may come, infinitely where it may not: ``logits``
    [tokens, vocabulary]."""
    answer = ConstrainedAnswer(grammar, limit)
    found: list[float] = []
    for token, likeliest, row in zip(completion, logits.argmax(1).tolist(), logits, strict=True):
        if not answer.allows(token):
            return [*found, float("inf")]
        options = answer.options(likeliest)
        best = row[likeliest] if options is None else row[torch.from_numpy(options).to(row.device)].max()
        found.append(float(best - row[token]))
        answer.take(token)
    return found
