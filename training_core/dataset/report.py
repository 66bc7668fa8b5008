"""The report on rows: how every line is used, findings, and whether the rows are fit to train on."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from training_core.rows.strict_json import Problem


@dataclass(frozen=True)
class Account:
    """How the lines of one file are used, and their format: ``lines`` is the sum of the five numbers after it."""

    file: str
    format: str
    lines: int
    trained: int
    held_out: int
    duplicates: int
    rejected: int
    overlong: int

    def __post_init__(self) -> None:
        used = self.trained + self.held_out + self.duplicates + self.rejected + self.overlong
        assert self.lines == used, f"{self.file}: {self.lines} lines in, {used} accounted for"


@dataclass(frozen=True)
class DecisionCount:
    """Rows of one decision in each split."""

    decision: str
    trained: int
    held_out: int


@dataclass(frozen=True)
class Lengths:
    """Histogram of tokens per row, duplicates left out: ``counts[i]`` rows have ``edges[i]`` to ``edges[i + 1]`` - 1.

    ``percentiles`` maps ``"50"``, ``"90"``, ``"99"`` and ``"100"`` to that percentile of the tokens.
    """

    limit: int
    percentiles: dict[str, int]
    edges: list[int]
    counts: list[int]


@dataclass(frozen=True)
class Finding:
    """Something worth knowing that rejects no row: how often it occurs, what it means, and the first places."""

    subject: str
    count: int
    meaning: str
    places: list[str]


@dataclass(frozen=True)
class DataReport:
    """The whole report. ``failures`` has one line per broken rule; with any, the rows are not fit to train on.

    ``problems`` has the first ones; all are in ``problems.jsonl`` in the same folder. ``packing`` estimates what
    sharing policies saves. ``case_fields`` are the fields of the rows' cases, the commonest first; empty where no
    row has a case.
    """

    accounts: list[Account]
    decisions: list[DecisionCount]
    lengths: Lengths
    policies: int
    packing: str
    findings: list[Finding]
    failures: list[str]
    problems: list[Problem]
    case_fields: list[str]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "DataReport":
        """What ``save`` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            accounts=[Account(**account) for account in values["accounts"]],
            decisions=[DecisionCount(**count) for count in values["decisions"]],
            lengths=Lengths(**values["lengths"]),
            policies=values["policies"],
            packing=values["packing"],
            findings=[Finding(**finding) for finding in values["findings"]],
            failures=values["failures"],
            problems=[Problem(**problem) for problem in values["problems"]],
            case_fields=values["case_fields"],
        )
