"""What a promotion is decided on: every model's answers to the same held-out rows, as arrays, and how rows belong
together."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from textwrap import shorten

import numpy as np
from datasets import Dataset
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training_core.dataset.encoding import leakage_keys
from training_core.evaluation.scores import Prediction
from training_core.rows.strict_json import Record, with_paths

ROWS_FILE, POLICIES_FILE, SCORES_FILE = "rows.jsonl", "policies.json", "scores.json"
GROUP, POLICY = "(group)", "(policy)"  # names in ``Evidence.fields``, in brackets as no field of a case is

_POLICY_FIELD = "policy_document"


@dataclass(frozen=True)
class EvidenceRow:
    """A held-out row next to its predictions: the number of its tie (the same for rows that share a case or an entity),
    the digest of its policy, and the record without the policy's text."""

    tie: int
    policy: str
    record: Record


@dataclass(frozen=True)
class ModelAnswers:
    """What one model gave, as arrays [rows]: the number of its decision, whether the answer was usable, whether
    ``answer_audit`` found problems, the scores of each text field (NaN where a row has none), and the answers."""

    decision: np.ndarray
    usable: np.ndarray
    has_problems: np.ndarray
    text_scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    answers: Sequence[str] = ()


@dataclass(frozen=True)
class Evidence:
    """All models' answers to the same rows, in the same order.

    ``decisions`` are the names of the decisions by number, as they occur in rows and answers; ``expected`` [rows] the
    numbers of the expected ones. ``ties`` [rows] numbers ties from 0. ``fields`` has an array [rows] of texts for every
    field of the case, for ``POLICY`` (first lines, or digests) and for ``GROUP`` (values of ``group_by``).
    """

    decisions: tuple[str, ...]
    expected: np.ndarray
    ties: np.ndarray
    fields: Mapping[str, np.ndarray]
    models: Mapping[str, ModelAnswers]
    left_out: int = 0

    @property
    def rows(self) -> int:
        return len(self.expected)

    def right(self, model: str) -> np.ndarray:
        """Where a model's answer is usable and has the expected decision [rows]."""
        found = self.models[model]
        return found.usable & (found.decision == self.expected)


def evidence_rows(rows: Dataset, entity_fields: Sequence[str]) -> tuple[list[EvidenceRow], dict[str, str]]:
    """What ``load_evidence`` needs to know about held-out rows, and the texts of their policies by digest."""
    records = [json.loads(record) for record in rows["record"]]
    ties = tie_rows([leakage_keys(record, entity_fields) for record in records])
    policies: dict[str, str] = {}
    found = []
    for record, tie in zip(records, ties.tolist(), strict=True):
        case = dict(record.get("input", {}))
        text = case.pop(_POLICY_FIELD, "")
        digest = hashlib.sha256(text.encode()).hexdigest()[:12] if text else ""
        policies[digest] = text
        found.append(EvidenceRow(tie, digest, record | ({"input": case} if "input" in record else {})))
    return found, policies


def tie_rows(keys: Sequence[Sequence[int]]) -> np.ndarray:
    """The number of each row's tie, from 0: rows are tied when they share a key, directly or through others."""
    rows = np.repeat(np.arange(len(keys)), [len(own) for own in keys])
    _, shared = np.unique(np.array(list(chain.from_iterable(keys)), np.uint64), return_inverse=True)
    nodes = len(keys) + (int(shared.max()) + 1 if len(shared) else 0)
    graph = coo_array((np.ones(len(rows), bool), (rows, len(keys) + shared)), shape=(nodes, nodes))
    parts = connected_components(graph, directed=False)[1][: len(keys)]
    return np.unique(parts, return_inverse=True)[1]


def write_evidence_rows(folder: Path, rows: Sequence[EvidenceRow], policies: Mapping[str, str]) -> None:
    """Write what ``load_evidence`` reads besides predictions."""
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    (folder / ROWS_FILE).write_text(lines, encoding="utf-8")
    (folder / POLICIES_FILE).write_text(json.dumps(policies, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_evidence_rows(folder: Path) -> list[EvidenceRow]:
    """The rows of an evaluation folder, in the order of its predictions."""
    return [EvidenceRow(**json.loads(line)) for line in (folder / ROWS_FILE).read_bytes().splitlines()]


def load_predictions(folder: Path) -> dict[str, list[Prediction]]:
    """The predictions in a folder that ``save_comparison`` wrote, by model, all in the order of the held-out rows."""
    names = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
    return {
        name: [Prediction(**json.loads(line)) for line in (folder / predictions_file(name)).read_bytes().splitlines()]
        for name in names
    }


def predictions_file(model: str) -> str:
    """The name of the file of a model's predictions."""
    return f"predictions_{model.replace(' ', '_')}.jsonl"


def load_left_out(folder: Path) -> int:
    """The number of held-out rows left out of the comparison that ``save_comparison`` wrote into a folder."""
    return int(json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["left_out"])


def load_evidence(folder: Path) -> Evidence:
    """All that ``gate.decide`` needs, from a folder that ``save_comparison`` wrote.

    Raises ``FileNotFoundError`` when the folder lacks a file, as one of an older version of this project does.
    """
    rows, predictions = load_evidence_rows(folder), load_predictions(folder)
    return evidence_of(rows, predictions, load_left_out(folder), load_policies(folder))


def load_policies(folder: Path) -> dict[str, str]:
    """The texts of the policies of an evaluation folder's rows, by digest."""
    found: dict[str, str] = json.loads((folder / POLICIES_FILE).read_text(encoding="utf-8"))
    return found


def evidence_of(
    rows: Sequence[EvidenceRow],
    predictions: Mapping[str, Sequence[Prediction]],
    left_out: int = 0,
    policies: Mapping[str, str] | None = None,
) -> Evidence:
    """The same from what is in memory; all models' predictions are in the order of ``rows``."""
    first = next(iter(predictions.values()))
    names = sorted({text for found in predictions.values() for one in found for text in (one.expected, one.decision)})
    number = {name: place for place, name in enumerate(names)}
    cases = [dict(with_paths(row.record.get("input", {}))) for row in rows]
    fields = {name: np.array([_as_text(case.get(name)) for case in cases]) for name in dict.fromkeys(chain(*cases))}
    titles = _titles(policies or {})
    fields |= {
        POLICY: np.array([titles.get(row.policy, row.policy) for row in rows]),
        GROUP: np.array([found.group for found in first]),
    }
    return Evidence(
        decisions=tuple(names),
        expected=np.array([number[found.expected] for found in first]),
        ties=np.unique([row.tie for row in rows], return_inverse=True)[1],
        fields=fields,
        models={name: _answers_of(found, number) for name, found in predictions.items()},
        left_out=left_out,
    )


def _titles(policies: Mapping[str, str]) -> dict[str, str]:
    """The first line of each policy, with its digest where several have the same."""
    lines = {digest: shorten(text.partition("\n")[0], 50, placeholder="…") for digest, text in policies.items()}
    counts = Counter(lines.values())
    return {
        digest: line if line and counts[line] == 1 else f"{line} {digest}".strip() for digest, line in lines.items()
    }


def _answers_of(predictions: Sequence[Prediction], number: Mapping[str, int]) -> ModelAnswers:
    names = dict.fromkeys(chain.from_iterable(found.text_scores for found in predictions))
    return ModelAnswers(
        decision=np.array([number[found.decision] for found in predictions]),
        usable=np.array([found.usable for found in predictions], bool),
        has_problems=np.array([bool(found.problems) for found in predictions], bool),
        text_scores={name: np.array([found.text_scores.get(name, np.nan) for found in predictions]) for name in names},
        answers=[found.answer for found in predictions],
    )


def _as_text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
