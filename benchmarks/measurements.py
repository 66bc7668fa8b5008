"""The measurements of a benchmark, and the figures that follow from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

DOCUMENTED, BEST, BY_HAND, NOT_SHARING, OURS = (
    "TRL as documented",
    "TRL at its best",
    "by hand",
    "ours, not sharing",
    "ours",
)
LAYOUT_NAMES = (DOCUMENTED, BEST, BY_HAND, NOT_SHARING, OURS)


@dataclass(frozen=True)
class Measurements:
    """A benchmark's JSON file: `about` the machine, `runs` of layouts on rows, `starts` of fresh processes."""

    about: dict[str, Any]
    runs: list[dict[str, Any]]
    starts: list[dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> "Measurements":
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def row_sets(self) -> list[dict[str, int]]:
        """Every set of rows once, policies from short to long, then few rows a policy to many."""
        sets = {tuple(run["rows"].values()): run["rows"] for run in self.runs}
        return [sets[key] for key in sorted(sets)]

    def of(self, layout: str, rows: dict[str, int]) -> list[dict[str, Any]]:
        """All repeats of one layout on one set of rows; empty where it did not run."""
        return [run for run in self.runs if (run["layout"], run["rows"]) == (layout, rows)]

    def speed(self, layout: str, rows: dict[str, int], clock: str = "cpu_seconds") -> float | None:
        """Median of tokens before sharing per second; None where the layout did not run on these rows."""
        speeds = [run["row_tokens"] / run[clock] for run in self.of(layout, rows)]
        return median(speeds) if speeds else None

    def gain(self, over: str, rows: dict[str, int]) -> float:
        """The speed of ours on these rows, divided by the speed of another layout.

        A layout that did not run on these rows is taken from rows with an equally long policy, whose speed is the same
        for it because it shares nothing.
        """
        alike = [rows, *(other for other in self.row_sets() if other["policy_tokens"] == rows["policy_tokens"])]
        other_speed = next(speed for found in alike if (speed := self.speed(over, found)) is not None)
        return (self.speed(OURS, rows) or 0) / other_speed

    def peak(self, layout: str, rows: dict[str, int]) -> float | None:
        """Median of the most memory held, in MB; None where the layout did not run on these rows."""
        peaks = [run["peak_memory_mb"] for run in self.of(layout, rows)]
        return median(peaks) if peaks else None

    def start(self, layout: str) -> float:
        """Median CPU seconds from the birth of a process to the end of its first step."""
        return median(start["start_cpu_seconds"] for start in self.starts if start["layout"] == layout)

    def spread(self) -> float:
        """The largest ``spread_of`` among all layouts and sets of rows."""
        cells = [self.of(layout, rows) for rows in self.row_sets() for layout in LAYOUT_NAMES]
        return max(spread_of(runs) for runs in cells if runs)


def spread_of(runs: list[dict[str, Any]]) -> float:
    """The most CPU time of these repeats, divided by the least."""
    return max(run["cpu_seconds"] for run in runs) / min(run["cpu_seconds"] for run in runs)
