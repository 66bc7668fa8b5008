"""The journal: the loss curve of a run as lines of JSON, every point once, with the time it was first measured."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training_core.folders import complete_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """Values measured at an optimiser step; ``time`` in seconds since 1970."""

    step: int
    of_steps: int
    time: float
    values: dict[str, float]


def tokens_before_sharing(points: Sequence[Point]) -> int:
    """The tokens of a whole training, each row counted in full although a shared policy is computed once."""
    for point in reversed(points):
        if "tokens_per_second" in point.values:
            return round(point.of_steps * point.values["tokens_per_second"] * point.values["seconds_per_step"])
    return 0


def read_journal(path: Path) -> list[Point]:
    """All points of a journal, without a last line that a crash has cut off and without damaged lines."""
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
    points = [point for line in whole if (point := _read_point(line))]
    if len(points) < len(whole):
        logger.warning("%s: %d damaged lines are left out of the loss curve", path, len(whole) - len(points))
    return points


def _read_point(line: bytes) -> Point | None:
    try:
        return Point(**json.loads(line))
    except (ValueError, TypeError):  # no JSON, or no point
        return None


def append_point(path: Path, point: Point) -> None:
    """Append a point and flush it to disk, so that it survives a crash of the process or the machine."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(point)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def mend_journal(path: Path) -> list[Point]:
    """Remove what ``read_journal`` leaves out, and return the points."""
    points = read_journal(path)
    if path.exists():
        with complete_file(path) as draft:
            draft.write_text("".join(json.dumps(asdict(point)) + "\n" for point in points), encoding="utf-8")
    return points
