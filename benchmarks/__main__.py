"""Measures what sharing a policy saves, beside TRL and a loop written by hand: `python -m benchmarks` (`--quick`).

All train the same NF4 base with the same adapter and optimiser on the same rows, all rows in every optimiser
step, and have to end with the same held-out loss. The unit is the *real row token*: a row counts in full, however
often its policy is computed. Every training runs in a process of its own, and the layouts take turns.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.compare import Plan, check_losses, compare
from benchmarks.report import PICTURE, RESULTS, RUNS, details, draw, section
from benchmarks.rows import SMALL_QWEN3, RowSet
from flows.readme import write_section

FULL = Plan(
    everyone=(RowSet(500, 1, 8), RowSet(500, 8, 2), RowSet(800, 8, 2), RowSet(3_000, 2, 2), RowSet(6_000, 1, 2)),
    only_ours=(
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
QUICK = Plan(everyone=(RowSet(100, 4, 2),), only_ours=(), repeats=1, starts=0)


def main() -> None:
    """Measure; a full run also writes the picture and the README's figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute; leaves what is published alone")
    parser.add_argument("--output", type=Path, help="where the results are written")
    arguments = parser.parse_args()
    output = arguments.output or (RUNS / "quick.json" if arguments.quick else RESULTS)
    console = Console()
    results = compare(QUICK if arguments.quick else FULL, SMALL_QWEN3, console)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    console.print(details(results))
    check_losses(results)
    if not arguments.quick:
        draw(results, PICTURE)
        write_section("bench", section(results))


if __name__ == "__main__":
    main()
