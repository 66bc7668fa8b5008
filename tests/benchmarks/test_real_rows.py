"""Real rows are drawn, trained within the time there is, and judged against the bars; a killed benchmark goes on."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.real_rows import Bench, best_field, digest_of, draw, planned, read_arguments
from benchmarks.real_rows_page import Cell, load, missed, save, table
from benchmarks.real_rows_page import draw as draw_curve
from flows.doc_sections import ROOT
from samples.cases import write_rows
from training_core.data_loader import load_jsonl
from training_core.rows.reader import Row

SCORE = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "usable": 1.0, "false_approvals": 0.1}
CELL = Cell(
    data="rows",
    folder="rows-16",
    rows=16,
    settings={},
    scores=dict.fromkeys(("base", "majority", "lookup table", "candidate"), SCORE),
    p={"base": 0.01, "majority": 0.01, "lookup table": 0.01},
    steps=10,
    final_loss=1.0,
    peak_memory_gib=1.0,
    training_seconds=100.0,
    judging_seconds=20.0,
    about={"date": "2026-11-28"},
)


@pytest.fixture(scope="module")
def rows(sample_rows: Path) -> list[Row]:
    return load_jsonl(sample_rows).rows


@pytest.fixture
def bench(sample_rows: Path, tmp_path: Path) -> Bench:
    return Bench(sample_rows, sample_rows, {"num_train_epochs": 32}, tmp_path / "results.json", tmp_path, 100)


def test_more_rows_contain_the_fewer(rows: list[Row]) -> None:
    few, more = (draw(rows, count).splitlines() for count in (10, 30))
    assert (len(few), len(more)) == (10, 30)
    assert set(few) < set(more)


def test_lookup_table_gets_the_field_that_tells_most(rows: list[Row]) -> None:
    telling = [row._replace(record=with_case(row, hint=row.record["output"]["decision"])) for row in rows]
    assert best_field(telling) == "shop.hint"
    unique = [row._replace(record=with_case(row, hint=str(number))) for number, row in enumerate(rows)]
    assert best_field(unique) not in ("shop.hint", "policy_document")


def with_case(row: Row, **fields: str) -> dict[str, object]:
    return row.record | {"input": row.record["input"] | {"shop": fields}}


def test_killed_training_goes_on_with_its_settings(bench: Bench, tmp_path: Path) -> None:
    first = planned(bench, tmp_path, [], 16, left=1000)
    assert planned(bench, tmp_path, [_like(bench)], 16, left=5) == first


def test_training_takes_the_steps_there_is_time_for(bench: Bench, tmp_path: Path) -> None:
    for left, steps in ((1000, 16), (70, 5)):  # 16 rows, 32 epochs, 32 rows a step: 16 steps
        (tmp_path / "settings.json").unlink(missing_ok=True)
        found = planned(bench, tmp_path, [_like(bench)], 16, left)
        assert found and found["max_steps"] == steps
    (tmp_path / "settings.json").unlink()
    assert planned(bench, tmp_path, [_like(bench)], 16, left=25) is None


def _like(bench: Bench) -> Cell:
    """A cell of the same files and settings: ten seconds a step, and twenty to judge."""
    return replace(CELL, folder=f"rows-16-{digest_of(bench)[:8]}")


def test_settings_of_the_product_are_flags_of_the_benchmark() -> None:
    own, settings = read_arguments(["--train", "a", "--eval", "b", "--rows", "5", "7", "--lora_r", "8"])
    assert own.rows == [5, 7]
    assert settings == {"lora_r": 8}


def test_table_names_every_bar_that_is_missed() -> None:
    assert missed(CELL) == []
    weak = replace(
        CELL, p=CELL.p | {"lookup table": 0.05}, scores=CELL.scores | {"candidate": SCORE | {"usable": 0.97}}
    )
    assert missed(weak) == ["better than lookup table", "usable answers"]
    assert table([weak]).rstrip().endswith("| better than lookup table, usable answers |")


def test_results_are_kept_and_drawn(tmp_path: Path) -> None:
    cells = [CELL, replace(CELL, rows=64), replace(CELL, data="others")]
    save(cells, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == cells
    draw_curve(cells, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.slow
def test_benchmark_trains_once_by_the_products_command(tmp_path: Path) -> None:
    for seed, name in enumerate(("rows", "held_out")):
        write_rows(tmp_path / f"{name}.jsonl", 40, seed, bad_share=0.0)
    command = [sys.executable, "-m", "benchmarks.real_rows", "--base", "samples/tiny_qwen", "--rows", "20"]
    command += ["--train", f"{tmp_path}/rows.jsonl", "--eval", f"{tmp_path}/held_out.jsonl", "--held_out_rows", "12"]
    command += ["--output", f"{tmp_path}/results.json", "--work", f"{tmp_path}/work"]
    command += ["--max_steps", "1", "--eval_max_new_tokens", "4", "--entity_fields", "[case_id]"]
    for _ in range(2):
        subprocess.run(command, check=True, cwd=ROOT)
    (cell,) = load(tmp_path / "results.json")
    assert (cell.rows, cell.steps) == (20, 1)
    assert cell.training_seconds > 0
    assert {name: scores["rows"] for name, scores in cell.scores.items()} == dict.fromkeys(CELL.scores, 12)
    assert set(cell.p) == {"base", "majority", "lookup table"}
    assert (tmp_path / "results.png").is_file()
