"""What the data stage found out about the rows: where each line went, what is doubtful, and whether they are fit."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from training_core.rows.strict_json import Problem


@dataclass(frozen=True)
class Account:
    """Where the lines of one file went, and the shape they came in: ``lines`` is the sum of the other numbers."""

    file: str
    shape: str
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
    """Rows of one decision on both sides."""

    decision: str
    trained: int
    held_out: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows that are no duplicates, as a histogram: ``counts[i]`` have ``edges[i]`` to ``edges[i + 1]``.

    ``percentiles`` maps a share of the rows, in per cent, to the most tokens among so many of the shortest.
    """

    limit: int
    percentiles: dict[str, int]
    edges: list[int]
    counts: list[int]


@dataclass(frozen=True)
class Finding:
    """Something to know about the rows that rejects none of them: how often it occurs, and the first places."""

    subject: str
    count: int
    meaning: str
    places: list[str]


@dataclass(frozen=True)
class DataReport:
    """Everything the data stage found out. ``failures`` names each rule that makes the rows unfit to train on.

    ``problems`` are the first ones; all are in ``problems.jsonl`` beside the report. ``packing`` is what sharing
    policies will save.
    """

    accounts: list[Account]
    decisions: list[DecisionCount]
    lengths: Lengths
    policies: int
    packing: str
    findings: list[Finding]
    failures: list[str]
    problems: list[Problem]

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
        )
