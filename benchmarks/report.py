"""What a benchmark found, as a table, a picture, and the README's section "How fast"."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rich.table import Table

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- bench:begin -->\n", "<!-- bench:end -->"

DOCUMENTED, BEST, FLOOR, ALONE, OURS = "TRL as documented", "TRL at its best", "by hand", "ours, not sharing", "ours"
COLOURS = {DOCUMENTED: "#c9c9c9", BEST: "#9a9a9a", FLOOR: "#5f5f5f", ALONE: "#9ecae1", OURS: "#1f77b4"}
HEADLINE = {"policy_tokens": 800, "rows_per_policy": 8}
SHADES = ("#9ecae1", "#6baed6", "#2171b5", "#08306b")


@dataclass(frozen=True)
class Results:
    """A benchmark's json: `about` the machine, `runs` of layouts on rows, `starts` of fresh processes."""

    about: dict[str, Any]
    runs: list[dict[str, Any]]
    starts: list[dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> "Results":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def row_sets(self) -> list[dict[str, int]]:
        """Every set of rows once, policies from short to long, then few rows a policy to many."""
        sets = {tuple(run["rows"].values()): run["rows"] for run in self.runs}
        return [sets[key] for key in sorted(sets)]

    def of(self, layout: str, rows: dict[str, int]) -> list[dict[str, Any]]:
        """All repeats of one layout on one set of rows; empty where it did not run."""
        return [run for run in self.runs if (run["layout"], run["rows"]) == (layout, rows)]

    def speed(self, layout: str, rows: dict[str, int], clock: str = "cpu_seconds") -> float | None:
        """Median of real row tokens per second; None where the layout did not run on these rows."""
        speeds = [run["row_tokens"] / run[clock] for run in self.of(layout, rows)]
        return median(speeds) if speeds else None

    def speed_by_length(self, layout: str, policy_tokens: int) -> float:
        """Of a layout that shares nothing: every row of a length costs the same, so any rows of it will do."""
        of_length = [rows for rows in self.row_sets() if rows["policy_tokens"] == policy_tokens]
        return next(speed for rows in reversed(of_length) if (speed := self.speed(layout, rows)) is not None)

    def gain(self, over: str, rows: dict[str, int]) -> float:
        """How many times as fast as another layout ours is on these rows."""
        ours = self.speed(OURS, rows)
        assert ours is not None, f"ours did not run on {rows}"
        return ours / self.speed_by_length(over, rows["policy_tokens"])

    def peak(self, layout: str, rows: dict[str, int]) -> float | None:
        """Median of the most memory held, in MB; None where the layout did not run on these rows."""
        peaks = [run["peak_memory_mb"] for run in self.of(layout, rows)]
        return median(peaks) if peaks else None

    def start(self, layout: str) -> float:
        """Median CPU seconds from the birth of a process to the end of its first step."""
        return median(start["start_cpu_seconds"] for start in self.starts if start["layout"] == layout)

    def spread(self) -> float:
        """The most CPU time that one layout took on one set of rows, over the least; the worst of all."""
        cells = [self.of(layout, rows) for rows in self.row_sets() for layout in COLOURS]
        return max(_spread(runs) for runs in cells if runs)


def _spread(runs: list[dict[str, Any]]) -> float:
    return max(run["cpu_seconds"] for run in runs) / min(run["cpu_seconds"] for run in runs)


def details(results: Results) -> Table:
    """Everything that was measured, medians over repeats, for the terminal."""
    table = Table("policy", "rows each", "layout", "per CPU s", "per s", "CPU s", "s", "spread", "peak MB", "loss")
    for rows in results.row_sets():
        for layout in COLOURS:
            if runs := results.of(layout, rows):
                seconds = [median(run[clock] for run in runs) for clock in ("cpu_seconds", "wall_seconds")]
                table.add_row(
                    f"{rows['policy_tokens']:,}",
                    str(rows["rows_per_policy"]),
                    layout,
                    *(_figure(results.speed(layout, rows, clock)) for clock in ("cpu_seconds", "wall_seconds")),
                    *(f"{figure:.1f}" for figure in seconds),
                    f"{_spread(runs):.2f}",
                    _figure(results.peak(layout, rows)),
                    f"{runs[0]['held_out_loss']:.5f}",
                )
        table.add_section()
    return table


def table(results: Results) -> str:
    """Real tokens per CPU second of every layout on every set of rows, as Markdown."""
    layouts = (DOCUMENTED, BEST, FLOOR, ALONE, OURS)
    headings = ("policy, tokens", "rows per policy", *layouts, "ours ÷ not sharing", "ours ÷ documented", "peak MB")
    lines = ["| " + " | ".join(headings) + " |", "|" + "--:|" * len(headings)]
    for rows in results.row_sets():
        cells = [f"{rows['policy_tokens']:,}", str(rows["rows_per_policy"])]
        cells += [_figure(results.speed(layout, rows)) for layout in layouts[:-1]]
        cells += [f"**{_figure(results.speed(OURS, rows))}**"]
        cells += [f"{results.gain(over, rows):.1f}×" for over in (ALONE, DOCUMENTED)]
        cells += [f"{_figure(results.peak(BEST, rows))} → {_figure(results.peak(OURS, rows))}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def section(results: Results, picture: str) -> str:
    """The README's picture and table, and what they depend on; all figures come from the results."""
    about = results.about
    return f"""\
![Real tokens per CPU second: TRL, a loop written by hand, and ours]({picture})

{table(results)}
An empty cell: a layout that shares nothing takes the same time for every row, so a few rows are enough; the ratios
compare with the same length of policy. *Peak MB*: TRL at its best → ours. *Start*, from the birth of a process to the
end of its first step: TRL {results.start(BEST):.1f}, ours {results.start(OURS):.1f} CPU seconds. Repeats of one cell
differ by up to {results.spread():.2f}×.

{about["date"]}, {about["cpu"]}, {about["cores"]} cores, medians of {about["repeats"]}; {about["versions"]};
`{about["environment"]}`. `make bench` measures anew and writes these lines.
"""


def write_readme(results: Results, picture: Path) -> None:
    """Replace what stands between the markers."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    text = section(results, picture.relative_to(README.parent).as_posix())
    README.write_text(before + BEGIN + text + END + rest.split(END)[1], encoding="utf-8")


def draw(results: Results, path: Path) -> None:
    """Left: everyone on the same rows. Right: what sharing gains as a policy has more rows."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_bars(results, left)
    _draw_lines(results, right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_bars(results: Results, axes: Axes) -> None:
    rows = next((rows for rows in results.row_sets() if rows.items() >= HEADLINE.items()), results.row_sets()[-1])
    speeds = {layout: speed for layout in COLOURS if (speed := results.speed(layout, rows)) is not None}
    bars = axes.barh(list(speeds), list(speeds.values()), color=[COLOURS[layout] for layout in speeds])
    axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds.values()], padding=4)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_title(f"{rows['rows_per_policy']} rows per {rows['policy_tokens']:,}-token policy", loc="left")
    axes.set_xlabel("real tokens per CPU second")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="y", length=0)


def _draw_lines(results: Results, axes: Axes) -> None:
    lengths = sorted({rows["policy_tokens"] for rows in results.row_sets()})
    for length, shade in zip(lengths, SHADES, strict=False):
        sets = [rows for rows in results.row_sets() if rows["policy_tokens"] == length]
        shares = [1, *(rows["rows_per_policy"] for rows in sets if rows["rows_per_policy"] > 1)]
        gains = [1.0, *(results.gain(ALONE, rows) for rows in sets if rows["rows_per_policy"] > 1)]
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
