"""What is written about an export: whether it decides as the judged adapter, in its README and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training_core.evaluation.scores import Prediction
from training_core.export.agreement import Agreement
from training_core.export.source import Source, write_json
from training_core.grid import Grid

README_FILE, VERDICT_FILE = "README.md", "export.json"
FIT, UNFIT, NOT_JUDGED = "fit to serve", "NOT FIT TO SERVE", "NOT JUDGED"

_MOST_SHOWN = 30


@dataclass(frozen=True)
class Verdict:
    """``runtime`` says what answered the held-out rows, or what is missing where nothing could: ``agreement`` is then
    ``None``. ``problems`` say why the export may not be served."""

    runtime: str
    agreement: Agreement | None
    problems: list[str]

    @property
    def outcome(self) -> str:
        """One of the three."""
        if self.problems:
            return UNFIT
        return FIT if self.agreement else NOT_JUDGED

    @property
    def sentence(self) -> str:
        """The figures, and what is wrong."""
        if not self.agreement:
            return f"no held-out row was answered: {self.runtime}"
        return "; ".join([f"by {self.runtime}: {', '.join(_figures(self.agreement))}", *self.problems])


def _figures(found: Agreement) -> list[str]:
    return [
        f"{found.equal:,} of {found.rows:,} decisions equal",
        f"false approvals {found.judged_false_approvals:.1%} → {found.false_approvals:.1%}",
        f"usable {found.judged_usable:.1%} → {found.usable:.1%}",
    ]


def advice(source: Source, verdict: Verdict) -> str:
    """What to do about an export that decides otherwise, where that is known."""
    if verdict.outcome != UNFIT or source.weights != "released" or source.trained_over != "nf4":
        return ""
    what = "It was trained over the base in four bits (NF4) and answers over the base as released"
    return f"{what}: export it merged or as gguf with --weights nf4, or train with quantisation none."


def write_verdict(folder: Path, source: Source, kind: str, verdict: Verdict, usage: str) -> None:
    """Write README, its first line the outcome, and the same with every differing row as JSON.

    Rows are named by file and line, and answers are left out: cases of customers do not travel with an export.
    """
    differing = verdict.agreement.differing if verdict.agreement else []
    write_json(
        folder / VERDICT_FILE,
        {
            **{"version": source.uri, "format": kind, "outcome": verdict.outcome, "runtime": verdict.runtime},
            **{"base": source.base_name, "base_commit": source.base_commit},
            **{"weights": source.weights, "max_new_tokens": source.max_new_tokens, "problems": verdict.problems},
            "agreement": _as_json(verdict.agreement) if verdict.agreement else None,
            "differing": [_row(*pair) for pair in differing],
        },
    )
    (folder / README_FILE).write_text(_readme(source, kind, verdict, usage), encoding="utf-8")


def _as_json(found: Agreement) -> dict[str, float]:
    names = ("rows", "equal", "judged_false_approvals", "false_approvals", "judged_usable", "usable")
    return {name: getattr(found, name) for name in names}


def _row(judged: Prediction, other: Prediction) -> dict[str, object]:
    place = {"file": judged.file, "line": judged.line, "expected": judged.expected}
    return {**place, "judged": judged.decision, "exported": other.decision}


def _readme(source: Source, kind: str, verdict: Verdict, usage: str) -> str:
    commit = f" at commit `{source.base_commit}`" if source.base_commit else ""
    lines = [
        f"# {verdict.outcome}: {source.uri} as {kind}",
        "",
        f"The adapter `{source.uri}` of the base `{source.base_name}`{commit}. Answers have at most "
        f"{source.max_new_tokens} tokens.",
        "",
        f"{verdict.sentence[0].upper()}{verdict.sentence[1:]}. {advice(source, verdict)}".rstrip(),
        *(["", _differences(verdict.agreement.differing)] if verdict.agreement else []),
        "",
        usage,
    ]
    return "\n".join(lines)


def _differences(differing: Sequence[tuple[Prediction, Prediction]]) -> str:
    if not differing:
        return "No decision differs."
    rows = [[str(value) for value in _row(*pair).values()] for pair in differing[:_MOST_SHOWN]]
    note = f"{len(differing) - _MOST_SHOWN} more are in {VERDICT_FILE}." if len(differing) > _MOST_SHOWN else ""
    head = ("file", "line", "expected", "judged", "exported")
    return Grid("Rows that it decides otherwise", head, rows, note).markdown()
