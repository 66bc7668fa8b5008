"""What a benchmark found, and the figures that follow from it."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

DOCUMENTED, BEST, FLOOR, ALONE, OURS = "TRL as documented", "TRL at its best", "by hand", "ours, not sharing", "ours"
LAYOUT_NAMES = (DOCUMENTED, BEST, FLOOR, ALONE, OURS)


@dataclass(frozen=True)
class Findings:
    """A benchmark's json: `about` the machine, `runs` of layouts on rows, `starts` of fresh processes."""

    about: dict[str, Any]
    runs: list[dict[str, Any]]
    starts: list[dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> "Findings":
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

    def gain(self, over: str, rows: dict[str, int]) -> float:
        """How many times as fast as a layout that shares nothing ours is on these rows.

        Where that did not run on them, it is taken from rows with as long a policy: they cost it the same.
        """
        alike = [rows, *(other for other in self.row_sets() if other["policy_tokens"] == rows["policy_tokens"])]
        rival = next(speed for other in alike if (speed := self.speed(over, other)) is not None)
        return (self.speed(OURS, rows) or 0) / rival

    def peak(self, layout: str, rows: dict[str, int]) -> float | None:
        """Median of the most memory held, in MB; None where the layout did not run on these rows."""
        peaks = [run["peak_memory_mb"] for run in self.of(layout, rows)]
        return median(peaks) if peaks else None

    def start(self, layout: str) -> float:
        """Median CPU seconds from the birth of a process to the end of its first step."""
        return median(start["start_cpu_seconds"] for start in self.starts if start["layout"] == layout)

    def spread(self) -> float:
        """The most CPU time that one layout took on one set of rows, over the least; the worst of all."""
        cells = [self.of(layout, rows) for rows in self.row_sets() for layout in LAYOUT_NAMES]
        return max(spread_of(runs) for runs in cells if runs)


def spread_of(runs: list[dict[str, Any]]) -> float:
    """The most CPU time over the least."""
    return max(run["cpu_seconds"] for run in runs) / min(run["cpu_seconds"] for run in runs)
