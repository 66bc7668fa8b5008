"""Measures what sharing a policy saves, against TRL and a plain loop: `python -m benchmarks [--quick | --render]`.

All layouts train the same NF4 base with the same adapter and optimiser on the same rows, all rows in every optimiser
step, and must reach the same held-out loss. Speed is in *tokens before sharing* per second: every row counts in full,
however often its policy is computed. Every training runs in a process of its own, and the layouts take turns.
"""

import argparse
import json
from dataclasses import asdict

from rich.console import Console

from benchmarks.compare import Plan, check_losses, compare
from benchmarks.measurements import Measurements
from benchmarks.report import PAGE, PICTURE, RESULTS, RUNS, SECTION, details, draw, section
from benchmarks.rows import SMALL_QWEN3, RowSet
from flows.doc_sections import write_section

FULL = Plan(
    all_layouts=(RowSet(500, 1, 8), RowSet(500, 8, 2), RowSet(800, 8, 2), RowSet(3_000, 2, 2), RowSet(6_000, 1, 2)),
    only_sharing=(
        RowSet(500, 2, 4),
        RowSet(500, 32, 2),
        RowSet(800, 32, 2),
        RowSet(3_000, 8, 2),
        RowSet(3_000, 32, 2),
        RowSet(6_000, 8, 2),
        RowSet(6_000, 32, 2),
    ),
    repeats=3,
    starts=3,
)
QUICK = Plan(all_layouts=(RowSet(100, 4, 2),), only_sharing=(), repeats=1, starts=0)


def main() -> None:
    """Measure; a full run also writes the picture and the figures of docs/performance.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure for a minute; changes no page")
    parser.add_argument("--render", action="store_true", help="write page and picture from the last results")
    arguments = parser.parse_args()
    if arguments.render:
        publish(Measurements.load(RESULTS))
        return
    output = RUNS / "quick.json" if arguments.quick else RESULTS
    console = Console()
    measured = compare(QUICK if arguments.quick else FULL, SMALL_QWEN3, console)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(asdict(measured), indent=1) + "\n", encoding="utf-8")
    console.print(details(measured))
    check_losses(measured)
    if not arguments.quick:
        publish(measured)


def publish(measured: Measurements) -> None:
    """Write the picture and the page's section."""
    draw(measured, PICTURE)
    write_section(PAGE, SECTION, section(measured))


if __name__ == "__main__":
    main()
