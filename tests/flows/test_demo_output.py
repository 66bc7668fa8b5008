"""The demo's output in the README: its end is cut out, long tables are shortened, and a changed layout is noticed."""

from dataclasses import replace

import pytest
from rich.console import Console

from flows.demo_output import MOST_TABLE_ROWS, from_first_table, layout, shortened
from training_core.grid import Grid

SCORES = Grid(
    "Decisions", ("", "95% interval", "right"), [("base", "3%–9%", "1/20"), ("lookup table", "30%–41%", "7/20")]
)
GROUPS = Grid("By group", ("group", "rows"), [(f"group_{name}", "12") for name in "abcdefghij"])
CLOSING = [
    "demo version 1 becomes champion: 3.1% of rows right (0:02:34)",
    "Adapter  /tmp/x/runs/1e6e/adapter",
    "UIs      sft-flow ui",
]


def printed(*grids: Grid, closing: list[str] = CLOSING) -> str:
    """What a run prints: a log line, tables, and the last lines."""
    console = Console(width=100)
    with console.capture() as capture:
        console.print("12:00:01 | INFO | Step 1 of 2")
        for grid in grids:
            console.print(grid.terminal())
        for line in closing:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return capture.get()


@pytest.fixture
def output() -> str:
    return from_first_table(printed(SCORES, GROUPS))


def test_output_starts_at_the_first_table(output: str) -> None:
    assert output.splitlines()[0] == "Decisions"
    assert output.splitlines()[-1] == CLOSING[-1]


def test_output_without_a_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected the demo to print tables"):
        from_first_table("12:00:01 | INFO | Step 1 of 2\n")


def test_long_tables_are_shortened_and_short_ones_kept(output: str) -> None:
    assert len(GROUPS.rows) > MOST_TABLE_ROWS
    lines = [line.split()[0] for line in shortened(output).splitlines() if line]
    assert lines[lines.index("group") :][2:5] == ["group_a", "group_b", "…"]
    assert {"base", "lookup", "Adapter", "UIs"} <= set(lines)


def test_layout_ignores_figures_and_paths(output: str) -> None:
    other_rows = [("base", "20.5%–33%", "19/20"), ("lookup table", "0%–1%", "0/20")]
    other = printed(
        replace(SCORES, rows=other_rows), GROUPS, closing=["demo version 7 stays candidate: no", *CLOSING[1:]]
    )
    assert layout(from_first_table(other)) == layout(output)


@pytest.mark.parametrize(
    "changed",
    [
        (replace(SCORES, title="Scores"), GROUPS),
        (replace(SCORES, head=("", "95% interval", "correct")), GROUPS),
        (replace(SCORES, rows=[("base model", *SCORES.rows[0][1:]), SCORES.rows[1]]), GROUPS),
        (SCORES,),
    ],
    ids=["title", "heading", "row label", "missing table"],
)
def test_layout_notices_changed_tables(output: str, changed: tuple[Grid, ...]) -> None:
    assert layout(from_first_table(printed(*changed))) != layout(output)


def test_layout_notices_a_changed_closing_line(output: str) -> None:
    other = printed(SCORES, GROUPS, closing=[CLOSING[0], CLOSING[1].replace("Adapter", "Weights"), CLOSING[2]])
    assert layout(from_first_table(other)) != layout(output)
