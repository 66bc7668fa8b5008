"""The loss curve of a run as lines in a file: every point once, with the time it was first seen."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from training_core.folders import complete_file


@dataclass(frozen=True)
class Point:
    """Values measured at an optimiser step; ``time`` in seconds since 1970."""

    step: int
    of_steps: int
    time: float
    values: dict[str, float]


def read_journal(path: Path) -> list[Point]:
    """All whole points of a journal; a last line cut off by a crash is passed over."""
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [Point(**json.loads(line)) for line in whole.splitlines()]


def append_point(path: Path, point: Point) -> None:
    """Add a point that survives the death of the process and of the machine."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(point)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def mend_journal(path: Path) -> list[Point]:
    """Cut off a last line that a crash left unfinished, and return the points."""
    points = read_journal(path)
    if path.exists():
        with complete_file(path) as draft:
            draft.write_text("".join(json.dumps(asdict(point)) + "\n" for point in points), encoding="utf-8")
    return points
