"""The speed benchmark: all layouts train the same rows to the same loss, and every row counts in full."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks import __main__ as command_line
from benchmarks.compare import LAYOUTS, Plan, check_losses
from benchmarks.measurements import BEST, BY_HAND, DOCUMENTED, NOT_SHARING, OURS, Measurements
from benchmarks.report import draw, section, table
from benchmarks.rows import RowSet

ROWS = {"policy_tokens": 100, "rows_per_policy": 4, "policies": 2}


@pytest.fixture(autouse=True)
def _restore_environment() -> Iterator[None]:
    with patch.dict(os.environ):
        yield


@pytest.mark.slow
def test_layouts_learn_the_same_and_only_ours_computes_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "quick.json"
    monkeypatch.setattr(command_line, "RUNS", tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmarks", "--quick"])
    command_line.main()
    runs = {run["layout"]: run for run in Measurements.load(path).runs}
    assert list(runs) == list(LAYOUTS)
    assert len({run["row_tokens"] for run in runs.values()}) == 1
    assert {layout for layout, run in runs.items() if run["computed_tokens"] < run["row_tokens"]} == {OURS}
    assert all(run["cpu_seconds"] > 0 and run["peak_memory_mb"] > 0 for run in runs.values())
    in_fp32 = [runs[layout]["held_out_loss"] for layout in (BEST, BY_HAND, NOT_SHARING, OURS)]
    assert in_fp32 == pytest.approx([in_fp32[0]] * 4, abs=1e-4)
    assert runs[DOCUMENTED]["held_out_loss"] == pytest.approx(in_fp32[0], abs=5e-2)


def test_layout_with_another_loss_is_an_error() -> None:
    runs = [{"layout": layout, "rows": ROWS, "held_out_loss": 9.0} for layout in (OURS, BY_HAND)]
    check_losses(Measurements({}, runs, starts=[]))
    with pytest.raises(RuntimeError, match=r"expected a held-out loss of 9\.0, got 9\.001 from ours"):
        check_losses(Measurements({}, [runs[0] | {"held_out_loss": 9.001}, runs[1]], starts=[]))


def test_plan_alternates_layouts_and_runs_the_slowest_once() -> None:
    plan = Plan(all_layouts=(RowSet(100, 4, 2),), only_sharing=(RowSet(100, 8, 2),), repeats=2, starts=0)
    turns = [(rows.rows_per_policy, layout) for rows, layout in plan.turns()]
    assert turns == [(4, layout) for layout in LAYOUTS] + [(8, OURS)] + [
        *((4, layout) for layout in LAYOUTS if layout != DOCUMENTED),
        (8, OURS),
    ]


def test_row_sets_repeat_only_the_policies() -> None:
    rows = RowSet(50, 3, 2).make(vocabulary=512)["input_ids"]
    policies = [tuple(row[:50]) for row in rows]
    assert [policies.count(policy) for policy in policies] == [3] * 6
    assert len({tuple(row[50:]) for row in rows}) == 6
    assert RowSet(50, 3, 2).make(vocabulary=512)["input_ids"] == rows


def run_of(layout: str, seconds: float, **rows: int) -> dict[str, object]:
    return {
        "layout": layout,
        "rows": ROWS | rows,
        "row_tokens": 1_000,
        "cpu_seconds": seconds,
        "peak_memory_mb": 700.0,
        "start_cpu_seconds": 8.0,
    }


@pytest.fixture
def results() -> Measurements:
    about = dict.fromkeys(("date", "cpu", "cores", "versions", "repeats", "environment"), "x")
    all_layouts = [run_of(layout, seconds) for layout, seconds in zip(LAYOUTS, (10.0, 5.0, 4.0, 4.0, 2.0), strict=True)]
    runs = [*all_layouts, run_of(OURS, 1.0, rows_per_policy=8)]
    return Measurements(about, runs, starts=[run_of(BEST, 1.0), run_of(OURS, 1.0)])


def test_table_compares_unmeasured_layouts_at_equal_policy_length(results: Measurements) -> None:
    four, eight = table(results).splitlines()[2:]
    assert four == "| 100 | 4 | 100 | 200 | 250 | 250 | **500** | 2.0× | 5.0× | 700 → 700 |"
    assert eight == "| 100 | 8 |  |  |  |  | **1,000** | 4.0× | 10.0× |  → 700 |"


def test_speed_is_the_median_over_repeats(results: Measurements) -> None:
    more = replace(results, runs=[*results.runs, run_of(OURS, 1.0), run_of(OURS, 2.0)])
    assert more.speed(OURS, ROWS) == 500
    assert more.spread() == 2.0


def test_picture_is_drawn_and_linked_in_the_section(results: Measurements, tmp_path: Path) -> None:
    draw(results, tmp_path / "docs" / "picture.png")
    assert (tmp_path / "docs" / "picture.png").stat().st_size > 10_000
    assert "](packing.png)" in section(results)
