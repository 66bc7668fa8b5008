"""What a model decides on held-out rows, and how good that is: the same functions for every model."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from training_core.config import RunConfig
from training_core.dataset.encoding import IGNORED_LABEL, leakage_keys
from training_core.dataset.evaluation_findings import same_decision
from training_core.evaluation.generation import complete
from training_core.evaluation.grammar import AnswerGrammar
from training_core.evaluation.text_scores import AnswerJudge, TrainingAnswers
from training_core.evaluation.text_scores import parse_answer as parse_answer
from training_core.model_setup import LoadedModel
from training_core.prompts.chat_encoding import ChatEncoder, Message
from training_core.prompts.messages import format_as_chat
from training_core.rows.strict_json import Record

NO_DECISION = "(no decision)"


@dataclass(frozen=True)
class Prediction:
    """One held-out row and what a model made of it.

    ``parsed``: the answer is one JSON object; ``usable``: it also has exactly the row's fields, each of its type and
    not empty. ``decision`` is ``NO_DECISION`` when the answer is not usable, so only a usable answer can be right.
    ``text_scores`` has a score from 0 to 1 for each other field (see ``text_scores.score_texts``), ``problems`` what
    ``answer_audit`` found. ``confidence`` is the probability of the decision (see ``generation.Completion``).
    Baselines decide without an answer of their own: they are always usable, and their texts are
    those of a training answer with the same decision, where there is one.
    """

    file: str
    line: int
    group: str
    expected: str
    decision: str
    parsed: bool
    usable: bool
    answer: str
    text_scores: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    confidence: float | None = None

    @property
    def right(self) -> bool:
        """Whether the answer is usable and has the expected decision."""
        return self.usable and self.decision == self.expected

    @property
    def text_score(self) -> float | None:
        """The mean of ``text_scores``; ``None`` where the row has no texts or the baseline has none."""
        return fmean(self.text_scores.values()) if self.text_scores else None


@dataclass(frozen=True)
class GroupScore:
    """Decision accuracy among the rows of one group."""

    rows: int
    accuracy: float


@dataclass(frozen=True)
class Scores:
    """Scores over all rows: an answer that is not usable counts as a wrong decision, never as a row less.

    ``accuracy_low`` and ``accuracy_high`` bound the 95% Wilson interval of the decision accuracy; ``macro_f1`` is the
    mean over the decisions that were expected. ``parsed``, ``usable`` and ``audit_problems`` are shares of all rows,
    and so are ``false_approvals``, decided in the customer's favour against the expected decision, and
    ``false_refusals``, expected in the customer's favour and not decided so. ``text_score`` is the mean over the
    rows that have one.
    """

    rows: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    parsed: float
    usable: float
    false_approvals: float
    false_refusals: float
    text_score: float | None
    audit_problems: float
    by_group: dict[str, GroupScore]


def unseen_rows(rows: Dataset, seen_keys: np.ndarray, config: RunConfig) -> Dataset:
    """The rows whose case and entities are not among these digests; with ``overlap="allow"`` all rows."""
    if config.overlap == "allow":
        return rows
    keys = [leakage_keys(json.loads(record), config.entity_fields) for record in rows["record"]]
    places = np.repeat(np.arange(len(keys)), [len(found) for found in keys])
    seen = places[np.isin(np.array(list(chain.from_iterable(keys)), np.uint64), seen_keys)]
    return rows.select(np.setdiff1d(np.arange(len(keys)), seen)) if len(seen) else rows


def evaluate_model(
    loaded: LoadedModel, rows: Dataset, config: RunConfig, judge: AnswerJudge, grammar: AnswerGrammar | None = None
) -> list[Prediction]:
    """The judged answers of ``answer_rows``."""
    return answer_rows(loaded, rows, config, judge, grammar)[0]


def answer_rows(
    loaded: LoadedModel, rows: Dataset, config: RunConfig, judge: AnswerJudge, grammar: AnswerGrammar | None = None
) -> tuple[list[Prediction], list[int]]:
    """Answer held-out rows (columns as in ``TrainingData``) greedily, read the answers strictly, and judge them; also
    the rows whose answer the grammar changed.

    They are asked in the tokens of the model's own tokenizer: a champion may have another base than the rows.
    """
    encoder = ChatEncoder.of(loaded.tokenizer)
    prompts = encoder.encode_prompts(questions(rows))
    found = complete(loaded, [prompt.tolist() for prompt in prompts], config, grammar)
    judged = judge_answers(rows, encoder.decode_answers([completion.tokens for completion in found]), judge)
    with_confidence = [replace(one, confidence=by.confidence) for one, by in zip(judged, found, strict=True)]
    return with_confidence, [row for row, completion in enumerate(found) if completion.changed]


def prompt_of(row: dict[str, Any]) -> list[int]:
    """The token ids of a row up to its answer, as the model was trained on them."""
    return [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED_LABEL]


def questions(rows: Dataset) -> list[list[Message]]:
    """The conversations that held-out rows ask, without their answers."""
    return [format_as_chat(json.loads(record))[:-1] for record in rows["record"]]


def judge_answers(rows: Dataset, answers: Sequence[str], judge: AnswerJudge) -> list[Prediction]:
    """Read the answers to held-out rows strictly, whatever wrote them, and judge them."""
    asked = zip(rows, map(json.loads, rows["record"]), answers, strict=True)
    return [_predict(judge, row, record, answer) for row, record, answer in asked]


def _predict(judge: AnswerJudge, row: dict[str, Any], record: Record, answer: str) -> Prediction:
    found = judge.judge(record, answer, f"{row['file']}:{row['line']}")
    return Prediction(
        file=row["file"],
        line=row["line"],
        group=row["group"],
        expected=row["decision"],
        decision=NO_DECISION if found.decision is None else found.decision,
        parsed=found.parsed,
        usable=found.usable,
        answer=answer,
        text_scores=found.text_scores,
        problems=found.problems,
    )


def score(predictions: Sequence[Prediction], config: RunConfig) -> Scores:
    """Scores of one model or baseline over all of its predictions; raises ``ValueError`` when there are none."""
    if not predictions:
        raise ValueError("expected at least one prediction to score, got none")
    rows = len(predictions)
    right = sum(found.right for found in predictions)
    interval = binomtest(right, rows).proportion_ci(method="wilson")
    expected, decided = ([getattr(found, name) for found in predictions] for name in ("expected", "decision"))
    favourable = set(map(same_decision, config.favourable_decisions))
    pairs = [
        (same_decision(e) in favourable, same_decision(d) in favourable) for e, d in zip(expected, decided, strict=True)
    ]
    texts = [found.text_score for found in predictions if found.text_score is not None]
    return Scores(
        rows=rows,
        accuracy=right / rows,
        accuracy_low=float(interval.low),
        accuracy_high=float(interval.high),
        macro_f1=float(f1_score(expected, decided, labels=sorted(set(expected)), average="macro", zero_division=0.0)),
        parsed=sum(found.parsed for found in predictions) / rows,
        usable=sum(found.usable for found in predictions) / rows,
        false_approvals=pairs.count((False, True)) / rows,
        false_refusals=pairs.count((True, False)) / rows,
        text_score=fmean(texts) if texts else None,
        audit_problems=sum(bool(found.problems) for found in predictions) / rows,
        by_group=_by_group(predictions),
    )


def _by_group(predictions: Sequence[Prediction]) -> dict[str, GroupScore]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for found in predictions:
        groups[found.group].append(found.right)
    return {name: GroupScore(len(hits), sum(hits) / len(hits)) for name, hits in sorted(groups.items())}


def predict_by_majority(train: Dataset, rows: Dataset) -> list[Prediction]:
    """The baseline that always gives the commonest decision of the training rows."""
    commonest = Counter(train["decision"]).most_common(1)[0][0]
    return [_as_prediction(row, commonest) for row in rows]


def predict_by_lookup(train: Dataset, rows: Dataset) -> list[Prediction]:
    """The baseline that gives the commonest training decision of the row's group, reading nothing else."""
    overall = Counter(train["decision"])
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for group, decision in zip(train["group"], train["decision"], strict=True):
        groups[group][decision] += 1
    return [_as_prediction(row, groups.get(row["group"], overall).most_common(1)[0][0]) for row in rows]


def _as_prediction(row: dict[str, Any], decision: str) -> Prediction:
    place = row["file"], row["line"]
    return Prediction(*place, row["group"], row["decision"], decision, parsed=True, usable=True, answer="")


def with_example_texts(
    predictions: Sequence[Prediction], rows: Dataset, answers: TrainingAnswers, judge: AnswerJudge
) -> list[Prediction]:
    """A baseline's predictions with the texts of training answers, judged against the expected ones of ``rows``."""
    records = map(json.loads, rows["record"])
    return [_with_example(found, record, answers, judge) for found, record in zip(predictions, records, strict=True)]


def _with_example(found: Prediction, record: Record, answers: TrainingAnswers, judge: AnswerJudge) -> Prediction:
    example = answers.example(found.group, found.decision)
    if example is None:
        return found
    texts, problems = judge.texts(record, example), judge.problems(record, example, f"{found.file}:{found.line}")
    return replace(found, answer=json.dumps(example, ensure_ascii=False), text_scores=texts, problems=problems)
