"""A run in tables and pictures: how it went, and how good what came out is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

import matplotlib
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from training_core.evaluation.scores import Prediction, Scores
from training_core.grid import Grid
from training_core.training.journal import Point

matplotlib.use("agg")

MOST_DECISIONS_DRAWN = 20


def score_grid(scores: Mapping[str, Scores], left_out: int = 0) -> Grid:
    """Models and baselines side by side, all over the same held-out rows, in at most 80 columns of a terminal; below,
    how many rows there are and how many were left out."""
    head = ("", "accuracy", "95% interval", "parsed", "usable", "texts", "false approvals", "false refusals")
    rows = [
        (
            name,
            f"{s.accuracy:.1%}",
            f"{s.accuracy_low:.0%}–{s.accuracy_high:.0%}",
            f"{s.parsed:.1%}",
            f"{s.usable:.1%}",
            "–" if s.text_score is None else f"{s.text_score:.1%}",
            f"{s.false_approvals:.1%}",
            f"{s.false_refusals:.1%}",
        )
        for name, s in scores.items()
    ]
    more = f" {left_out:,} more are left out: candidate or champion was trained on their case or an entity of theirs."
    note = f"Over {next(iter(scores.values())).rows:,} held-out rows.{more if left_out else ''}"
    return Grid("Decisions on held-out rows", head, rows, note)


def group_grid(scores: Mapping[str, Scores], group_by: str) -> Grid:
    """Decision accuracy of each model and baseline, group by group."""
    groups = next(iter(scores.values())).by_group
    rows = [
        (group or "(none)", str(groups[group].rows), *(f"{s.by_group[group].accuracy:.0%}" for s in scores.values()))
        for group in groups
    ]
    return Grid(f"Decision accuracy by {group_by}", (group_by, "rows", *scores), rows)


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
