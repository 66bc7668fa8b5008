"""What a model decides on held-out rows, and how good that is: base, candidate and champion by the same door."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from training_core.config import RunConfig
from training_core.dataset.encoding import IGNORED_LABEL, leakage_keys
from training_core.evaluation.generation import generate
from training_core.model_setup import LoadedModel
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.messages import format_as_chat
from training_core.rows.strict_json import Record

NO_DECISION = "(no decision)"


@dataclass(frozen=True)
class Prediction:
    """One held-out row and what a model made of it. ``decision`` is ``NO_DECISION`` when the answer is unusable."""

    file: str
    line: int
    group: str
    expected: str
    decision: str
    valid_json: bool
    answer: str


@dataclass(frozen=True)
class GroupScore:
    """Decision accuracy among the rows of one group."""

    rows: int
    accuracy: float


@dataclass(frozen=True)
class Scores:
    """Scores over all rows: an unusable answer counts as a wrong decision, never as a row less.

    ``accuracy_low`` and ``accuracy_high`` bound the 95% Wilson interval of the decision accuracy; ``macro_f1`` is the
    mean over the decisions that were expected; ``false_approvals`` is the share of rows decided in the customer's
    favour against the expected decision.
    """

    rows: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    json_validity: float
    false_approvals: float
    by_group: dict[str, GroupScore]


def unseen_rows(rows: Dataset, seen_keys: np.ndarray, config: RunConfig) -> Dataset:
    """The rows whose case and entities are not among these digests; with ``overlap="allow"`` all rows."""
    if config.overlap == "allow":
        return rows
    keys = [leakage_keys(json.loads(record), config.entity_fields) for record in rows["record"]]
    places = np.repeat(np.arange(len(keys)), [len(found) for found in keys])
    seen = places[np.isin(np.array(list(chain.from_iterable(keys)), np.uint64), seen_keys)]
    return rows.select(np.setdiff1d(np.arange(len(keys)), seen)) if len(seen) else rows


def evaluate_model(loaded: LoadedModel, rows: Dataset, config: RunConfig) -> list[Prediction]:
    """Answer held-out rows (columns as in ``TrainingData``) greedily and read the answers strictly.

    They are asked in the tokens of the model's own tokenizer: a champion may stand on another base than the rows.
    """
    encoder = ChatEncoder.of(loaded.tokenizer)
    records = [json.loads(record) for record in rows["record"]]
    prompts = encoder.encode_prompts([format_as_chat(record)[:-1] for record in records])
    answers = encoder.decode_answers(generate(loaded, [prompt.tolist() for prompt in prompts], config))
    return [_predict(*asked) for asked in zip(rows, records, answers, strict=True)]


def prompt_of(row: dict[str, Any]) -> list[int]:
    """The token ids of a row up to its answer, as the model was trained on them."""
    return [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED_LABEL]


def _predict(row: dict[str, Any], record: Record, answer: str) -> Prediction:
    found = parse_answer(answer)
    valid = found is not None and found.keys() == record["output"].keys()
    decision = found.get("decision") if found else None
    return Prediction(
        file=row["file"],
        line=row["line"],
        group=row["group"],
        expected=row["decision"],
        decision=decision if isinstance(decision, str) else NO_DECISION,
        valid_json=valid,
        answer=answer,
    )


def parse_answer(text: str) -> dict[str, Any] | None:
    """The answer's JSON object, or ``None`` when the text is anything but one object of unique keys."""
    try:
        found = json.loads(text, object_pairs_hook=_unique_keys)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8")  # no NaN, 1e999, lone surrogate
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)


def score(predictions: Sequence[Prediction], config: RunConfig) -> Scores:
    """Scores of one model or baseline over all of its predictions; raises ``ValueError`` when there are none."""
    if not predictions:
        raise ValueError("there is nothing to score")
    rows = len(predictions)
    correct = [found.decision == found.expected for found in predictions]
    interval = binomtest(sum(correct), rows).proportion_ci(method="wilson")
    expected = [found.expected for found in predictions]
    decided = [found.decision for found in predictions]
    favourable = set(config.favourable_decisions)
    against_policy = sum(d in favourable and e not in favourable for d, e in zip(decided, expected, strict=True))
    groups: dict[str, list[bool]] = defaultdict(list)
    for found, right in zip(predictions, correct, strict=True):
        groups[found.group].append(right)
    return Scores(
        rows=rows,
        accuracy=sum(correct) / rows,
        accuracy_low=float(interval.low),
        accuracy_high=float(interval.high),
        macro_f1=float(f1_score(expected, decided, labels=sorted(set(expected)), average="macro", zero_division=0.0)),
        json_validity=sum(found.valid_json for found in predictions) / rows,
        false_approvals=against_policy / rows,
        by_group={name: GroupScore(len(hits), sum(hits) / len(hits)) for name, hits in sorted(groups.items())},
    )


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
    return Prediction(*place, row["group"], row["decision"], decision, valid_json=True, answer="")
