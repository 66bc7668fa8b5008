"""A run in tables and pictures: what came in, what came out, and how good it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import matplotlib
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from sklearn.metrics import ConfusionMatrixDisplay

from training_core.data_report import Account, DataReport
from training_core.evaluation import Prediction, Scores
from training_core.journal import Point

matplotlib.use("agg")

MOST_DECISIONS_DRAWN = 20
MOST_PLACES_SHOWN = 5
MOST_PROBLEMS_SHOWN = 10
MOST_PLACES_SHOWN = 5
MOST_PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Grid:
    """A table of texts, to be shown in a terminal or in Markdown."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def terminal(self) -> Table:
        table = Table(
            title=Text(self.title),
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for i, name in enumerate(self.head):
            table.add_column(Text(name), justify="left" if i == 0 else "right", no_wrap=i == 0 and len(self.head) > 1)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def markdown(self) -> str:
        rows = [self.head, ["---", *(["---:"] * (len(self.head) - 1))], *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(map(_in_one_cell, row))} |" for row in rows)])


def _in_one_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def score_grid(scores: Mapping[str, Scores]) -> Grid:
    """Models and baselines side by side, all over the same held-out rows."""
    head = ("", "accuracy", "95% interval", "right", "macro F1", "valid JSON", "wrongly favourable")
    rows = [
        (
            name,
            f"{s.accuracy:.1%}",
            f"{s.accuracy_low:.0%}–{s.accuracy_high:.0%}",
            f"{round(s.accuracy * s.rows)}/{s.rows}",
            f"{s.macro_f1:.3f}",
            f"{s.json_validity:.1%}",
            f"{s.wrongly_favourable:.1%}",
        )
        for name, s in scores.items()
    ]
    return Grid("Decisions on held-out rows", head, rows)


def group_grid(scores: Mapping[str, Scores], group_by: str) -> Grid:
    """Decision accuracy of each model and baseline, group by group."""
    groups = next(iter(scores.values())).by_group
    rows = [
        (group or "(none)", str(groups[group].rows), *(f"{s.by_group[group].accuracy:.0%}" for s in scores.values()))
        for group in groups
    ]
    return Grid(f"Decision accuracy by {group_by}", (group_by, "rows", *scores), rows)


def account_grid(accounts: Sequence[Account]) -> Grid:
    """Where every line went."""
    head = ("file", "shape", "lines", "trained", "held out", "duplicates", "refused", "overlong")
    rows = [
        (
            Path(a.file).name,
            a.shape,
            *(f"{n:,}" for n in (a.lines, a.trained, a.held_out, a.duplicates, a.refused, a.overlong)),
        )
        for a in accounts
    ]
    return Grid("Every line accounted for", head, rows)


def data_grids(report: DataReport) -> list[Grid]:
    """The rows in tables: where each line went, decisions, lengths, what is doubtful, and which rules are broken."""
    decisions = [(d.decision, f"{d.trained:,}", f"{d.held_out:,}") for d in report.decisions]
    lengths = [(f"{share}% of the rows", f"{tokens:,}") for share, tokens in report.lengths.percentiles.items()]
    packing = [("policies", f"{report.policies:,}"), ("packing", report.packing or "off")]
    findings = [(f.subject, f"{f.count:,}", f.meaning) for f in report.findings]
    places = [(f.subject, place) for f in report.findings for place in f.places[:MOST_PLACES_SHOWN]]
    problems = [(f"{Path(p.file).name}:{p.line}", p.field, p.what, p.remedy) for p in report.problems]
    grids = [
        account_grid(report.accounts),
        Grid("Rows by decision", ("decision", "trained", "held out"), decisions),
        Grid("Longest row, in tokens", ("of", "at most"), [*lengths, ("max_seq_length", f"{report.lengths.limit:,}")]),
        Grid("Sharing of policies", ("", ""), packing),
        Grid("Worth knowing", ("what", "how many", "meaning"), findings),
        Grid("Where", ("what", "place"), places),
        Grid("Refused lines", ("place", "field", "what", "remedy"), problems[:MOST_PROBLEMS_SHOWN]),
        Grid("Not fit to train on", ("rule",), [(failure,) for failure in report.failures]),
    ]
    return [grid for grid in grids if grid.rows]


def draw_confusion(predictions: Sequence[Prediction], path: Path) -> None:
    """Write a picture of expected against given decisions: the commonest expected ones by name, all others as one."""
    named = {name for name, _ in Counter(found.expected for found in predictions).most_common(MOST_DECISIONS_DRAWN)}
    figure = Figure(figsize=(6, 5), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        [_as_label(found.expected, named) for found in predictions],
        [_as_label(found.decision, named) for found in predictions],
        ax=figure.subplots(),
        xticks_rotation=35,
        colorbar=False,
        cmap="Blues",
    )
    figure.axes[0].set(xlabel="given", ylabel="expected", title="Decisions on held-out rows")
    figure.savefig(path)


def _as_label(decision: str, named: set[str]) -> str:
    if decision not in named:
        return "(other)"
    return shorten(decision, 40, placeholder="…").replace("$", r"\$")  # between dollars it would be a formula


def draw_curve(points: Sequence[Point], path: Path) -> None:
    """Write a picture of the loss over the optimiser steps."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("eval_loss", "held out")):
        curve = [(point.step, point.values[name]) for point in points if name in point.values]
        axes.plot(*zip(*curve, strict=True) if curve else ((), ()), label=label, marker="." if name != "loss" else None)
    axes.set(xlabel="optimiser step", ylabel="loss per answer token", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
