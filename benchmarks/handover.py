"""Whether the bound on automatic errors holds: `python -m benchmarks.handover` (`--quick`).

Cases are simulated whose true probability of a false approval is known for every confidence, with
confidences that are right, with some that are too high and with many that are equal. Each split of held-out rows gives
a threshold; the true share of such errors among all cases above it must be below `max_automatic_error` in at least 95
of 100 splits.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date

import numpy as np
from rich.console import Console

from flows.doc_sections import DOCS, ROOT, write_section
from training_core.evaluation.handover import find_threshold

RESULTS = ROOT / "benchmarks" / "results" / "handover.json"
PAGE, SECTION = DOCS / "evaluation.md", "handover"

CASES = 1_000_000  # the truth
# How calibrated the simulated confidences are (0.8: of answers with confidence 0.9, 12.5% are wrong), and their digits.
KINDS = {"right": (1.0, 12), "too high": (0.8, 12), "far too high": (0.5, 12), "right, two digits": (1.0, 2)}
WANTED = (0.005, 0.02)
ROWS = (500, 1_000, 2_000, 5_000)
WANTED_SPLITS = 0.95
FAVOURABLE = 0.35  # share of the decisions


@dataclass(frozen=True)
class Cell:
    """Many splits of one kind: how often the true share of errors was below the wanted one, the share of cases that was
    decided automatically, and how often nothing was."""

    kind: str
    wanted: float
    rows: int
    splits: int
    held: float
    automatic: float
    nothing: float


def cases(rng: np.random.Generator, count: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of cases, most of them high, and whether each is wrongly decided in the customer's favour."""
    truth, digits = KINDS[kind]
    confidence = 1 - 0.75 * rng.beta(0.3, 1.2, count)
    wrong = rng.random(count) > 1 - (1 - confidence) / truth
    return confidence.round(digits), wrong & (rng.random(count) < FAVOURABLE)


def measure(kind: str, wanted: float, rows: int, splits: int) -> Cell:
    """So many splits of ``rows`` held-out rows."""
    rng = np.random.default_rng([rows, round(1 / wanted), list(KINDS).index(kind)])
    confidence, errors = cases(rng, CASES, kind)
    order = np.argsort(confidence)
    confidence, after = confidence[order], np.cumsum(errors[order][::-1])[::-1]
    held, automatic = [], []
    for _ in range(splits):
        found = find_threshold(*cases(rng, rows, kind), wanted)
        above = int(np.searchsorted(confidence, found.threshold, side="right"))
        held.append(above == CASES or after[above] / (CASES - above) < wanted)
        automatic.append((CASES - above) / CASES)
    nothing = float(np.mean(np.array(automatic) == 0))
    return Cell(kind, wanted, rows, splits, float(np.mean(held)), float(np.mean(automatic)), nothing)


def cells(splits: int) -> Iterator[Cell]:
    """Every kind, bound and number of rows."""
    for kind in KINDS:
        for wanted in WANTED:
            yield from (measure(kind, wanted, rows, splits) for rows in ROWS)


def table(found: list[Cell]) -> str:
    """The results as Markdown."""
    missed = sum(one.held < WANTED_SPLITS for one in found)
    return "\n".join(
        [
            f"{found[0].splits:,} simulated splits a line, {date.today()}. *Holds*: the true share of false approvals "
            f"among automatic cases is below the wanted one. It does in at least {WANTED_SPLITS:.0%} of the splits in "
            f"{len(found) - missed} of {len(found)} lines.",
            "",
            "| confidences | wanted | held-out rows | holds | decided automatically | splits with none |",
            "| --- | --: | --: | --: | --: | --: |",
            *(
                f"| {one.kind} | {one.wanted:.1%} | {one.rows:,} | {one.held:.1%} | {one.automatic:.1%} "
                f"| {one.nothing:.1%} |"
                for one in found
            ),
            "",
        ]
    )


def main() -> None:
    """Simulate; a full run also writes results and table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.handover", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundred splits a line; changes no page")
    arguments = parser.parse_args()
    found = list(cells(100 if arguments.quick else 1_000))
    Console().print(table(found), markup=False)
    if not arguments.quick:
        results = {"date": str(date.today()), "cells": [asdict(cell) for cell in found]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section(PAGE, SECTION, table(found))


if __name__ == "__main__":
    main()
