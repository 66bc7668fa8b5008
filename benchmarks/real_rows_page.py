"""The results of `python -m benchmarks.real_rows` as a file, a table and a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flows.doc_sections import DOCS, ROOT, write_section
from training_core.folders import complete_file

RESULTS = ROOT / "benchmarks" / "results" / "real_rows.json"
RUNS = ROOT / "runs" / "real_rows"
PAGE, SECTION, PICTURE = DOCS / "evaluation.md", "real_rows", "real_rows.png"
COLOURS = {"base": "#9a9a9a", "majority": "#c9c9c9", "lookup table": "#5f5f5f", "candidate": "#1f77b4"}
USABLE, LEVEL = 0.98, 0.05  # the bars


@dataclass(frozen=True)
class Cell:
    """One training: `rows` drawn, scores by model on the held-out rows, and `p`, one-sided and paired, of the candidate
    against each other model. The seconds are of the wall clock."""

    data: str
    folder: str
    rows: int
    settings: dict[str, Any]
    scores: dict[str, dict[str, Any]]
    p: dict[str, float]
    steps: int
    final_loss: float
    peak_memory_gib: float
    training_seconds: float
    judging_seconds: float
    about: dict[str, str]


def load(path: Path) -> list[Cell]:
    """The cells that were finished; none where there is no such file."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cells": []}
    return [Cell(**cell) for cell in found["cells"]]


def save(cells: Sequence[Cell], path: Path) -> None:
    """Write all cells, or leave the file as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path) as draft:
        draft.write_text(json.dumps({"cells": [asdict(cell) for cell in cells]}, indent=1) + "\n", encoding="utf-8")


def publish(path: Path) -> None:
    """Draw the picture; write the section of the page where these are the results that it shows."""
    cells = load(path)
    published = path == RESULTS
    if cells:
        draw(cells, DOCS / PICTURE if published else path.with_suffix(".png"))
    if published:
        write_section(PAGE, SECTION, section(cells))


def section(cells: Sequence[Cell]) -> str:
    """The table, how it was measured, and the picture; nothing where nothing was finished."""
    if not cells:
        return ""
    return f"{table(cells)}\n{how(cells[-1])}\n\n![Accuracy over the number of training rows]({PICTURE})\n"


def how(cell: Cell) -> str:
    """The settings, versions and times of a cell in one paragraph."""
    named = (cell.settings, cell.about)
    settings, about = (", ".join(f"{name} {found}" for name, found in each.items()) for each in named)
    minutes = [round(seconds / 60) for seconds in (cell.training_seconds, cell.judging_seconds)]
    return (
        f"Over {cell.scores['candidate']['rows']} held-out rows. The last training, of {cell.rows:,} rows of "
        f"{cell.data}, took {minutes[0]} minutes, its evaluation {minutes[1]}, "
        f"with {cell.peak_memory_gib:.1f} GiB at the peak. "
        f"Settings: {settings}. Made with: {about}."
    )


def table(cells: Sequence[Cell]) -> str:
    """One line for each training, and which bars it missed."""
    head = [
        *("rows of", "training rows", "steps", "base", "majority", "lookup table", "**adapter**", "95% interval"),
        *("usable", "false approvals", "p: majority", "p: lookup table", "misses"),
    ]
    lines = [_line(head), _line(["---", *["--:"] * (len(head) - 2), "---"])]
    return "\n".join([*lines, *map(_of_cell, sorted(cells, key=lambda cell: (cell.data, cell.rows)))]) + "\n"


def _of_cell(cell: Cell) -> str:
    adapter = cell.scores["candidate"]
    shares = [f"{cell.scores[name]['accuracy']:.1%}" for name in ("base", "majority", "lookup table")]
    return _line(
        [
            cell.data,
            f"{cell.rows:,}",
            str(cell.steps),
            *shares,
            f"**{adapter['accuracy']:.1%}**",
            f"{adapter['accuracy_low']:.0%}–{adapter['accuracy_high']:.0%}",
            f"{adapter['usable']:.1%}",
            f"{adapter['false_approvals']:.1%}",
            *(f"{cell.p[name]:.2g}" for name in ("majority", "lookup table")),
            ", ".join(missed(cell)) or "none",
        ]
    )


def missed(cell: Cell) -> list[str]:
    """The bars that a training does not reach: better than both baselines at 5%, and 98% usable answers."""
    not_better = [f"better than {name}" for name in ("majority", "lookup table") if cell.p[name] >= LEVEL]
    return not_better + ["usable answers"] * (cell.scores["candidate"]["usable"] < USABLE)


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Accuracy over the number of training rows, one panel for each set of rows."""
    names = sorted({cell.data for cell in cells})
    figure = Figure(figsize=(1 + 5 * len(names), 4), layout="constrained")
    for axes, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        found = sorted((cell for cell in cells if cell.data == data), key=lambda cell: cell.rows)
        rows = [cell.rows for cell in found]
        for model, colour in COLOURS.items():
            shares = [cell.scores[model]["accuracy"] for cell in found]
            axes.plot(rows, shares, "o-", color=colour, label="adapter" if model == "candidate" else model)
        bounds = [[cell.scores["candidate"][f"accuracy_{end}"] for cell in found] for end in ("low", "high")]
        axes.vlines(rows, *bounds, color=COLOURS["candidate"], alpha=0.4)
        axes.set(xscale="log", ylim=(0, 1.02), xlabel="training rows", ylabel="accuracy on held-out rows")
        axes.set_xticks(rows, [f"{count:,}" for count in rows])
        axes.set_title(data, loc="left")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    publish(RESULTS)
