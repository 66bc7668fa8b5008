"""One line of output: what a version answered to a case, or why not."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from training_core.config import RunConfig
from training_core.evaluation.generation import Completion
from training_core.evaluation.handover import is_handed_over
from training_core.evaluation.text_scores import DECISION, parse_answer
from training_core.prediction.cases import Case
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.rows.strict_json import BadLineError, check_record, describe_value

_MOST_SHOWN = 20


class Answer(NamedTuple):
    """What a version answered: the text, why it cannot be used, the probability of its decision where the grammar
    names the decisions, and whether a person has to decide the case."""

    text: str
    why_not: str | None = None
    confidence: float | None = None
    hand_over: bool = False


def to_line(case: Case, answer: Answer | None = None) -> bytes:
    """A case and its answer as one line of JSON. The keys are the same in every line, in the same order.

    ``decision`` is that of a usable answer. ``why_not`` says what is wrong with another one, ``error`` why there is
    none; then a person has to decide.
    """
    usable = answer is not None and answer.why_not is None
    found = parse_answer(answer.text) if answer and usable else None
    content = {
        "file": case.file,
        "line": case.line,
        "decision": found[DECISION] if found else None,
        "usable": usable,
        "confidence": answer.confidence if answer else None,
        "hand_over": answer is None or answer.hand_over,
        "answer": answer.text if answer else None,
        "why_not": answer.why_not if answer else None,
        "error": case.error,
    }
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def judge(completion: Completion, encoder: ChatEncoder, config: RunConfig, min_confidence: float | None) -> Answer:
    """The answer in a completion. A person decides where it cannot be used or its confidence is not above
    ``min_confidence``; ``None``: every usable one is decided automatically."""
    text, ended = encoder.decode_answer(completion.tokens), encoder.end_of_turn in completion.tokens
    why_not = why_not_usable(text, ended=ended, config=config)
    handed_over = why_not is not None or is_handed_over(completion.confidence, min_confidence)
    return Answer(text, why_not, completion.confidence, handed_over)


def why_not_usable(answer: str, *, ended: bool, config: RunConfig) -> str | None:
    """Why an answer cannot be used: a row to train on could not have it. ``ended``: whether it ends by itself."""
    if not ended:
        return f"cut off after {config.eval_max_new_tokens} tokens, the limit of this version"
    found = parse_answer(answer)
    if found is None:
        return f"expected one JSON object, got {describe_value(answer)}"
    try:
        check_record({"messages": [], "output": found}, config.allowed_decisions)
    except BadLineError as error:
        return f"{error.args[0]}: {error.args[1]}"
    return None


@dataclass
class Counts:
    """What the lines of an output add up to; ``bad_rows`` and ``unusable`` have the first 20 of each.

    ``handed_over`` also counts lines without a usable answer.
    """

    lines: int = 0
    bad: int = 0
    usable: int = 0
    handed_over: int = 0
    decisions: dict[str, int] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)

    def add(self, lines: Sequence[bytes]) -> None:
        """Count further lines of output."""
        for line in map(json.loads, lines):
            self.lines += 1
            self.bad += line["error"] is not None
            self.usable += line["usable"]
            self.handed_over += line["hand_over"]
            if line["usable"]:
                self.decisions[line["decision"]] = self.decisions.get(line["decision"], 0) + 1
            _keep(self.bad_rows, line, "error")
            _keep(self.unusable, line, "why_not")

    def by_decision(self) -> list[tuple[str, int]]:
        """Decisions and how often each was given, the most frequent first."""
        return sorted(self.decisions.items(), key=lambda item: (-item[1], item[0]))

    @property
    def summary(self) -> str:
        """All counts as one line."""
        answered = self.lines - self.bad
        found = f"{self.usable:,} of {answered:,} answers are usable, {self.bad:,} bad rows"
        return f"{self.lines:,} lines: {found}; {self.handed_over:,} for a person to decide"


def _keep(texts: list[str], line: dict[str, Any], reason: str) -> None:
    if line[reason] is not None and len(texts) < _MOST_SHOWN:
        texts.append(f"{line['file']}:{line['line']}: {line[reason]}")
