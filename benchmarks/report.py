"""The measurements as tables, as a picture, and as the section of docs/performance.md."""

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rich.table import Table

from benchmarks.measurements import BEST, BY_HAND, DOCUMENTED, LAYOUT_NAMES, NOT_SHARING, OURS, Measurements, spread_of
from flows.doc_sections import DOCS, ROOT

PAGE = DOCS / "performance.md"
PICTURE = DOCS / "packing.png"
SECTION = "bench"
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
RUNS = ROOT / "runs" / "benchmarks"

COLOURS = {DOCUMENTED: "#c9c9c9", BEST: "#9a9a9a", BY_HAND: "#5f5f5f", NOT_SHARING: "#9ecae1", OURS: "#1f77b4"}
HEADLINE = {"policy_tokens": 800, "rows_per_policy": 8}
SHADES = ("#9ecae1", "#6baed6", "#2171b5", "#08306b")


def details(results: Measurements) -> Table:
    """Everything that was measured, medians over repeats, for the terminal."""
    table = Table("policy", "rows each", "layout", "per CPU s", "per s", "CPU s", "s", "spread", "peak MB", "loss")
    for rows in results.row_sets():
        for layout in LAYOUT_NAMES:
            if runs := results.of(layout, rows):
                seconds = [median(run[clock] for run in runs) for clock in ("cpu_seconds", "wall_seconds")]
                table.add_row(
                    f"{rows['policy_tokens']:,}",
                    str(rows["rows_per_policy"]),
                    layout,
                    *(_figure(results.speed(layout, rows, clock)) for clock in ("cpu_seconds", "wall_seconds")),
                    *(f"{figure:.1f}" for figure in seconds),
                    f"{spread_of(runs):.2f}",
                    _figure(results.peak(layout, rows)),
                    f"{runs[0]['held_out_loss']:.5f}",
                )
        table.add_section()
    return table


def table(results: Measurements) -> str:
    """Tokens before sharing per CPU second of every layout on every set of rows, as Markdown."""
    headings = (
        "policy, tokens",
        "rows per policy",
        *LAYOUT_NAMES,
        "÷ not sharing",
        "÷ documented",
        "peak MB",
    )
    lines = ["| " + " | ".join(headings) + " |", "|" + "--:|" * len(headings)]
    for rows in results.row_sets():
        cells = [f"{rows['policy_tokens']:,}", str(rows["rows_per_policy"])]
        cells += [_figure(results.speed(layout, rows)) for layout in LAYOUT_NAMES[:-1]]
        cells += [f"**{_figure(results.speed(OURS, rows))}**"]
        cells += [f"{results.gain(over, rows):.1f}×" for over in (NOT_SHARING, DOCUMENTED)]
        cells += [f"{_figure(results.peak(BEST, rows))} → {_figure(results.peak(OURS, rows))}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def section(results: Measurements) -> str:
    """The page's picture and table, and what they depend on; all figures come from the measurements."""
    about = results.about
    return f"""\
![Tokens before sharing per CPU second: TRL, a plain loop, and ours]({PICTURE.relative_to(PAGE.parent).as_posix()})

{table(results)}
*÷* is the speed of *ours* divided by the speed of that layout. Empty cells were not measured: a layout that shares
nothing takes the same time for every row, so its ratios use the cell with the same policy length. *Peak MB*: TRL at its
best → ours. From the start of the process to the end of the first step: TRL {results.start(BEST):.1f}, ours
{results.start(OURS):.1f} CPU seconds. Repeats of one cell differ by up to {results.spread():.2f}×.

{about["date"]}, {about["cpu"]}, {about["cores"]} cores, medians of {about["repeats"]}, `{about["environment"]}`;
{about["versions"]}. `make bench` measures again and writes these lines.
"""


def draw(results: Measurements, path: Path) -> None:
    """Left: all layouts on the same rows. Right: the gain of sharing as a policy has more rows."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_bars(results, left)
    _draw_lines(results, right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_bars(results: Measurements, axes: Axes) -> None:
    rows = next((rows for rows in results.row_sets() if rows.items() >= HEADLINE.items()), results.row_sets()[-1])
    speeds = {layout: speed for layout in LAYOUT_NAMES if (speed := results.speed(layout, rows)) is not None}
    bars = axes.barh(list(speeds), list(speeds.values()), color=[COLOURS[layout] for layout in speeds])
    axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds.values()], padding=4)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_title(f"{rows['rows_per_policy']} rows per {rows['policy_tokens']:,}-token policy", loc="left")
    axes.set_xlabel("tokens before sharing per CPU second")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="y", length=0)


def _draw_lines(results: Measurements, axes: Axes) -> None:
    lengths = sorted({rows["policy_tokens"] for rows in results.row_sets()})
    for length, shade in zip(lengths, SHADES, strict=False):
        sets = [rows for rows in results.row_sets() if rows["policy_tokens"] == length]
        shares = [1, *(rows["rows_per_policy"] for rows in sets if rows["rows_per_policy"] > 1)]
        gains = [1.0, *(results.gain(NOT_SHARING, rows) for rows in sets if rows["rows_per_policy"] > 1)]
        if len(shares) > 1:
            axes.plot(shares, gains, "o-", color=shade)
            axes.annotate(
                f"{length:,} tokens", (shares[-1], gains[-1]), (6, 0), textcoords="offset points", va="center"
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis, text in ((axes.xaxis, "{:,.0f}"), (axes.yaxis, "{:,.0f}×")):
        axis.set_major_formatter(FuncFormatter(lambda value, _, text=text: text.format(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.02)
    axes.set_xlim(right=110)
    axes.set_xticks([1, 2, 4, 8, 16, 32])
    axes.set_title("Gain of sharing, by length of policy", loc="left")
    axes.set_xlabel("rows per policy")
