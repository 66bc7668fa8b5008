"""The tables of the report truncate nothing, hide nothing and show any text of a row."""

import io

import pytest
from rich.console import Console
from sample_report import ACCOUNT, PROBLEMS, ROWS, report

from training_core.dataset.report import Account, DecisionCount, Finding, Lengths
from training_core.dataset.tables import (
    MAX_SHOWN,
    account_grid,
    as_markdown,
    data_grids,
    kinds_of,
    share,
    short_names,
    total,
    verdict,
    with_short_names,
)
from training_core.grid import Grid


def shown(grids: list[Grid], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for grid in grids:
        console.print(grid.terminal())
    return console.file.getvalue()  # type: ignore[attr-defined]


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", [70, 80, 120])
def test_tables_truncate_no_cell_in_a_narrow_terminal(width: int) -> None:
    grids = data_grids(report(accounts=[ACCOUNT, Account("/x/" + "long-name" * 9, "native", 0, 0, 0, 0, 0, 0)]))
    text = shown(grids, width)
    assert max(map(len, text.split("\n"))) <= width
    assert "…" not in text
    for whole in ("duplicates", "overlong", "5", "15", "800–999"):
        assert whole in text


def test_tables_wrap_long_texts_without_losing_letters() -> None:
    name = "a-file-with-a-name-that-does-not-fit-in-fifty-columns-at-all.jsonl"
    text = shown([account_grid([Account(name, "native", 0, 0, 0, 0, 0, 0)])], 60)
    first_column = letters("".join(line[: line.find("  ", 1)] for line in text.split("\n")))
    assert name in first_column


def test_grid_recognises_columns_of_numbers() -> None:
    accounts, decisions, *_ = data_grids(report())
    assert [accounts.is_number(place) for place in range(3)] == [False, True, True]
    assert [decisions.is_number(place) for place in range(5)] == [False, True, True, True, True]
    assert not Grid("", ("a", "b"), [("", "5 rows of text"), ("", "7")]).is_number(1)


def test_account_grid_shows_all_counts_and_the_total() -> None:
    assert list(account_grid([ACCOUNT]).rows[0]) == ["rows.jsonl (native)", "15", "5", "4", "3", "2", "1"]
    assert list(account_grid([ACCOUNT, ACCOUNT]).rows[-1]) == ["all", "30", "10", "8", "6", "4", "2"]


def test_account_grid_sums_up_files_beyond_the_first() -> None:
    accounts = [Account(f"{n}.jsonl", "native", 2, 1, 1, 0, 0, 0) for n in range(MAX_SHOWN + 30)]
    *_, rest, every = account_grid(accounts).rows
    assert list(rest[:3]) == ["… 30 more", "60", "30"]
    assert every[1] == f"{2 * len(accounts)}"


def test_decision_grid_sums_up_less_frequent_decisions() -> None:
    decisions = [DecisionCount(f"d{n}", 2, 1) for n in range(MAX_SHOWN + 5)]
    rows = data_grids(report(decisions=decisions))[1].rows
    assert list(rows[-1]) == ["… 5 more", "10", "20%", "5", "20%"]


def test_length_grid_draws_bars_and_the_limit() -> None:
    grid = next(grid for grid in data_grids(report()) if grid.title.startswith("Lengths"))
    assert grid.title == "Lengths of 10 rows"
    (_, _, _, first), (_, _, _, second), (_, _, _, third) = grid.rows
    assert first == "█" * len(first)
    assert "max_seq_length 2,048" in second
    assert 0 < len(third) < len(first)
    assert grid.note.startswith("9 of 10 rows fit in 2,048 tokens")


def test_short_names_are_unique_suffixes_of_paths() -> None:
    files = ["/a/x/rows.jsonl", "/b/x/rows.jsonl", "/b/other.jsonl", "s3://bucket/rows.jsonl", "rows.jsonl"]
    short = ["a/x/rows.jsonl", "b/x/rows.jsonl", "other.jsonl", "bucket/rows.jsonl", "rows.jsonl"]
    assert list(short_names(files).values()) == short


def test_with_short_names_shortens_paths_in_all_texts() -> None:
    other = Account("/y/some/where/rows.jsonl", "native", 0, 0, 0, 0, 0, 0)
    places = [Finding("x", 1, "", [f"{ROWS}:1 = {other.file}:2"])]
    full = report(accounts=[ACCOUNT, other], findings=places, failures=[f"{other.file}: 2 lines"])
    found = with_short_names(full)
    assert found.findings[0].places == ["/some/where/rows.jsonl:1 = y/some/where/rows.jsonl:2"]
    assert found.failures == ["y/some/where/rows.jsonl: 2 lines"]
    assert with_short_names(report()).problems[0].file == "rows.jsonl"


def test_problem_grid_groups_lines_and_counts_all() -> None:
    (kind,) = kinds_of(PROBLEMS)
    assert (kind.first.line, kind.lines) == (3, 2)
    grid = data_grids(report(problems=PROBLEMS[:1]))[-1]
    assert grid.title == "Rejected lines: 2 of 15"
    assert grid.note.startswith("1 more")


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "–"), (0, 9, "0%"), (1, 1000, "<1%"), (1, 2, "50%"), (999, 1000, ">99%"), (9, 9, "100%")],
)
def test_share_rounds_to_0_or_100_only_when_exact(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_verdict_is_one_line() -> None:
    assert verdict(report()) == "Fit to train on: 5 rows for training, 4 held out, 6 of 15 unused"
    assert verdict(report(failures=["x", "y"])) == "NOT fit to train on: 2 rules are broken"


@pytest.mark.parametrize("text", ["[/x]", "[bold]hidden", "a | b", "two\nlines", "é 你好 🙂", "", "x" * 400, "\\"])
def test_tables_show_any_text_of_rows_unchanged(text: str) -> None:
    grids = data_grids(report(decisions=[DecisionCount(text, 1, 1)]))
    assert set(text.split()) <= set(shown([grids[1]], 500).split())
    lines = grids[1].markdown().split("\n")
    assert {line.replace("\\|", "").count("|") for line in lines[2:]} == {len(grids[1].head) + 1}


def test_markdown_opens_with_the_verdict_and_escapes_texts() -> None:
    decisions = [DecisionCount("<script>", 1, 1)]
    text = as_markdown(report(decisions=decisions, failures=[f"{ROWS}: <b>9</b> lines", "overlap: 3 rows"]))
    broken = "- rows.jsonl: &lt;b&gt;9&lt;/b&gt; lines\n- overlap: 3 rows\n\n"
    assert text.startswith(f"# NOT fit to train on: 2 rules are broken\n\n{broken}")
    assert "<" not in text
    for title in ("Every line accounted for", "Decisions", "Lengths", "Shared policies", "Rejected lines"):
        assert f"**{title}" in text


def test_tables_of_an_empty_report_can_be_rendered() -> None:
    empty = Account(ROWS, "unknown", 0, 0, 0, 0, 0, 0)
    nothing = report(accounts=[empty], decisions=[], lengths=Lengths(16, {}, [], []), findings=[], problems=[])
    assert shown(data_grids(nothing), 80)
    assert total([empty]).lines == 0
