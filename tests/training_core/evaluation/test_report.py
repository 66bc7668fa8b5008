"""Tables and pictures show every row, whatever customers and models have written."""

import io
import math
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
from rich.console import Console

from training_core.config import RunConfig
from training_core.evaluation.report import draw_confusion, draw_curve, group_grid, score_grid
from training_core.evaluation.scores import NO_DECISION, Prediction, Scores, score
from training_core.grid import Grid
from training_core.training.journal import Point

ODD = ["[/x]", "[bold]hidden", "a | b", "two\nlines", "$x_$", "$\\frac$", "é 你好 🙂", "", "x" * 400, "\x1b[31m", "\\"]


def found(expected: str, decision: str, group: str = "return") -> Prediction:
    return Prediction("rows.jsonl", 1, group, expected, decision, parsed=True, usable=True, answer="")


def scores_of(*predictions: Prediction) -> Scores:
    return score(predictions, RunConfig())


def shown(grid: Grid) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(grid.terminal())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_score_table_has_a_row_for_each_model() -> None:
    mixed = scores_of(*[found("A", "A")] * 3, found("B", "Eligible"))
    grid = score_grid({"base": scores_of(found("A", NO_DECISION)), "candidate": mixed})
    assert [row[0] for row in grid.rows] == ["base", "candidate"]
    for text in (grid.markdown(), shown(grid)):
        for cell in ("75.0%", "30%–95%", "100.0%", "25.0%"):
            assert cell in text


def test_score_table_counts_the_rows_left_out() -> None:
    scores = {"candidate": scores_of(found("A", "A"))}
    for text in (score_grid(scores, left_out=114).markdown(), shown(score_grid(scores, left_out=114))):
        assert "114 more are left out" in text
    assert score_grid(scores).note == "Over 1 held-out rows."


def test_score_table_fits_a_terminal_of_80_columns() -> None:
    """With every name and figure in it, however many rows there are."""
    many = replace(scores_of(found("A", "A")), rows=12_345, text_score=0.5)
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(score_grid({"candidate": many, "lookup table": many}).terminal())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "candidate" in text and "lookup" in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("100.0%") == 6 and "lookup table" in text


def test_group_table_has_every_group_and_model() -> None:
    one = scores_of(found("A", "A", "a"), found("A", "B", "b"), found("A", "A", "b"), found("A", "A", ""))
    two = scores_of(found("A", "B", "a"), found("A", "B", "b"), found("A", "B", "b"), found("A", "B", ""))
    grid = group_grid({"base": one, "candidate": two}, "issue_type")
    assert list(grid.head) == ["issue_type", "rows", "base", "candidate"]
    assert [list(row) for row in grid.rows] == [
        ["(none)", "1", "100%", "0%"],
        ["a", "1", "100%", "0%"],
        ["b", "2", "50%", "0%"],
    ]


@pytest.mark.parametrize("text", ["[/x]", "[bold]hidden", "a[/]b", "[link=x]y"])
def test_terminal_table_keeps_square_brackets(text: str) -> None:
    """Group names come from the data; rich must not read them as markup."""
    grid = group_grid({"base": scores_of(found("A", "A", text))}, text)
    assert shown(grid).count(text) >= 2


@pytest.mark.parametrize("text", ODD)
def test_markdown_table_escapes_pipes_and_newlines(text: str) -> None:
    grid = group_grid({"base": scores_of(found("A", "A", text))}, "issue_type")
    lines = grid.markdown().split("\n")
    assert len(lines) == 5
    assert {line.replace("\\|", "").count("|") for line in lines[2:]} == {len(grid.head) + 1}


def test_confusion_picture_is_a_png(tmp_path: Path) -> None:
    pairs = [("Eligible", "Escalate"), ("Eligible", "Eligible"), ("Escalate", NO_DECISION)]
    draw_confusion([found(*pair) for pair in pairs], tmp_path / "confusion.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "confusion.png").shape
    assert height > 300
    assert width > 400


@pytest.mark.parametrize("text", ODD)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_confusion_picture_is_drawn_for_any_decisions(tmp_path: Path, text: str) -> None:
    """A decision is whatever text stands in the answer; it must not cost a finished training its evaluation."""
    draw_confusion([found("Eligible", text), found("Escalate", "Escalate")], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000


@pytest.mark.filterwarnings("error")
def test_confusion_picture_is_readable_with_invented_decisions(tmp_path: Path) -> None:
    """An untrained model gives a new decision for almost every row."""
    draw_confusion([found("Eligible", f"invented {i}") for i in range(60)], tmp_path / "confusion.png")
    picture = matplotlib.image.imread(tmp_path / "confusion.png")
    assert (picture[:, :, :3].min(axis=2) < 0.5).mean() < 0.25, "the labels lie upon each other"


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point(1, 9, 1.0, {"loss": 2.0})],
        [Point(1, 9, 1.0, {"eval_loss": 2.0}), Point(2, 9, 1.0, {"loss": math.nan, "grad_norm": 1.0})],
        [Point(i, 9, 1.0, {"loss": 1e30 ** (i % 2)}) for i in range(9)],
    ],
    ids=["none", "one", "no number", "wild"],
)
def test_curve_is_drawn_from_any_points(tmp_path: Path, points: list[Point]) -> None:
    draw_curve(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
