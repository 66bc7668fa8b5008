"""How good the texts of an answer are, and whether the answer can be used at all."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from datasets import Dataset
from sacrebleu.metrics import CHRF

from training_core.config import RunConfig
from training_core.dataset.encoding import IGNORED_LABEL
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.rows.strict_json import Record
from training_core.user_functions import UserFunction

DECISION = "decision"

_MOST_READ = 5_000  # training rows from which the number of a field's values is taken
_MOST_VALUES, _ROWS_PER_VALUE = 100, 10


def parse_answer(text: str) -> Record | None:
    """The answer's JSON object, or ``None`` when the text is anything but one object of unique keys."""
    try:
        found = json.loads(text, object_pairs_hook=_unique_keys)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8")  # no NaN, 1e999, lone surrogate
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return dict(pairs)


def is_usable(answer: Record | None, expected: Record) -> bool:
    """Whether an answer has exactly the fields of the expected one, each of its type, and empty only where that is."""
    if answer is None or answer.keys() != expected.keys():
        return False
    return all(_fits(answer[name], value) for name, value in expected.items())


def _fits(given: Any, expected: Any) -> bool:
    if _type_of(given) != _type_of(expected):
        return False
    return not _is_empty(given) or _is_empty(expected)


def _type_of(value: Any) -> str:
    """The value's type in JSON, where 1 and 1.0 are both numbers and true is none."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def _is_empty(value: Any) -> bool:
    return value in ([], {}) or (isinstance(value, str) and not value.strip())


def score_texts(answer: Record | None, expected: Record, exact_fields: frozenset[str]) -> dict[str, float]:
    """A score from 0 to 1 for each field but the decision: 1 or 0 for equal or not in ``exact_fields`` and where the
    expected value is no string; chrF otherwise. All are 0 where there is no usable answer.

    chrF is the F-score of character n-grams up to 6 (Popović, 2015), as sacrebleu computes it.
    """
    names = [name for name in expected if name != DECISION]
    if answer is None:
        return dict.fromkeys(names, 0.0)
    return {name: _score(answer.get(name), expected[name], name in exact_fields) for name in names}


def _score(given: Any, expected: Any, exact: bool) -> float:
    if exact or given == expected or not isinstance(expected, str) or not isinstance(given, str):
        return float(given == expected)
    return float(_chrf().sentence_score(given, [expected]).score) / 100


@cache
def _chrf() -> CHRF:
    return CHRF()


@dataclass(frozen=True)
class TrainingAnswers:
    """What the answers of the training rows say about texts.

    ``exact_fields`` have few values, so an answer's must be equal to the expected one. ``examples`` is the first
    training answer of each group and decision, the texts that a lookup table would give.
    """

    exact_fields: frozenset[str]
    examples: Mapping[tuple[str, str], Record]

    def example(self, group: str, decision: str) -> Record | None:
        """A training answer with this decision, of this group where there is one."""
        of_group = self.examples.get((group, decision))
        return of_group or next((answer for (_, own), answer in self.examples.items() if own == decision), None)


def read_training_answers(train: Dataset, encoder: ChatEncoder) -> TrainingAnswers:
    """Read the answers of encoded training rows back: of the first 5,000, and of each group's first of a decision."""
    pairs = list(zip(train["group"][:], train[DECISION][:], strict=True))
    first = {pair: place for place, pair in reversed(list(enumerate(pairs)))}
    places = sorted({*range(min(len(pairs), _MOST_READ)), *first.values()})
    ids = [[label for label in labels if label != IGNORED_LABEL] for labels in train.select(places)["labels"]]
    answers = dict(zip(places, map(json.loads, encoder.decode_answers(ids)), strict=True))
    examples = {pair: answers[place] for pair, place in sorted(first.items(), key=lambda item: item[1])}
    return TrainingAnswers(_fields_with_few_values(list(answers.values())), examples)


def _fields_with_few_values(answers: list[Record]) -> frozenset[str]:
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        for name, value in answer.items():
            values[name][json.dumps(value, sort_keys=True)] += 1
    few = {
        name for name, counts in values.items() if len(counts) <= min(_MOST_VALUES, counts.total() / _ROWS_PER_VALUE)
    }
    return frozenset(few)


@dataclass(frozen=True)
class Judgement:
    """What there is to say about one answer: see ``Prediction``."""

    parsed: bool
    usable: bool
    decision: str | None
    text_scores: dict[str, float]
    problems: list[str]


@dataclass(frozen=True)
class AnswerJudge:
    """Judges answers to held-out rows; ``audit`` is the function of the setting ``answer_audit``."""

    exact_fields: frozenset[str] = frozenset()
    audit: UserFunction | None = None

    @classmethod
    def of(cls, config: RunConfig, exact_fields: frozenset[str]) -> "AnswerJudge":
        """A judge with the audit that the settings name."""
        audit = UserFunction.load("answer_audit", config.answer_audit) if config.answer_audit else None
        return cls(exact_fields, audit)

    def judge(self, record: Record, answer: str, place: str = "") -> Judgement:
        """Judge the text of an answer to the row at ``place``."""
        found = parse_answer(answer)
        usable = found if is_usable(found, record["output"]) else None
        return Judgement(
            parsed=found is not None,
            usable=usable is not None,
            decision=str(usable[DECISION]) if usable else None,
            text_scores=self.texts(record, usable),
            problems=self.problems(record, usable, place),
        )

    def texts(self, record: Record, answer: Record | None) -> dict[str, float]:
        """The scores of an answer's texts."""
        return score_texts(answer, record["output"], self.exact_fields)

    def problems(self, record: Record, answer: Record | None, place: str = "") -> list[str]:
        """What the audit finds wrong with an answer; nothing without an audit or an answer."""
        return self.audit.problems(place, record, answer) if self.audit and answer else []
