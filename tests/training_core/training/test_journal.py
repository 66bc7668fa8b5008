"""The journal survives any crash: every complete point once, and no incomplete one."""

import json
import math
from pathlib import Path

import pytest

from training_core.training.journal import Point, append_point, mend_journal, read_journal, tokens_before_sharing

POINTS = [
    Point(1, 9, 1700000000.25, {"loss": 0.1 + 0.2}),
    Point(2, 9, 1700000001.5, {"loss": 1e-300, "é\n\u2028": -0.0}),
]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    for point in POINTS:
        append_point(path, point)
    return path


def test_journal_returns_points_as_appended(journal: Path) -> None:
    assert read_journal(journal) == POINTS
    assert len(journal.read_bytes().split(b"\n")) == len(POINTS) + 1


def test_journal_keeps_nan_and_infinity(tmp_path: Path) -> None:
    """A training that diverged must still be readable."""
    append_point(tmp_path / "journal", Point(1, 2, 3.0, {"loss": math.nan, "grad_norm": math.inf}))
    (point,) = read_journal(tmp_path / "journal")
    assert math.isnan(point.values["loss"])
    assert point.values["grad_norm"] == math.inf


def test_journal_that_is_missing_or_empty_has_no_points(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "nowhere") == mend_journal(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").touch()
    assert read_journal(tmp_path / "empty") == mend_journal(tmp_path / "empty") == []


def test_journal_cut_off_anywhere_gives_its_complete_points(journal: Path) -> None:
    whole = journal.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole)):
        journal.write_bytes(whole[:length])
        assert read_journal(journal) == POINTS[: 0 if length < first else 1]


def test_mended_journal_can_be_appended_to(journal: Path) -> None:
    whole = journal.read_bytes()
    for length in range(len(whole)):
        journal.write_bytes(whole[:length])
        kept = mend_journal(journal)
        append_point(journal, POINTS[0])
        assert read_journal(journal) == [*kept, POINTS[0]]
    assert [path.name for path in journal.parent.iterdir()] == [journal.name]


@pytest.mark.parametrize("tail", [b"\x00" * 40, b"\xff\xfe", b'{"step": 3, "of_st', b"\n"])
def test_journal_ignores_what_a_power_failure_leaves(journal: Path, tail: bytes) -> None:
    """A file system may have allocated a line and not written it, or only a part."""
    with journal.open("ab") as file:
        file.write(tail)
    assert read_journal(journal) == POINTS
    assert mend_journal(journal) == POINTS
    assert [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]


def test_mending_a_complete_journal_changes_no_byte(journal: Path) -> None:
    before = journal.read_bytes()
    assert mend_journal(journal) == POINTS
    assert journal.read_bytes() == before


@pytest.mark.parametrize("damage", [b"\x00" * 20, b'{"step": 1', b'{"step": 1}', b"[]", b"\xff"])
def test_damaged_line_costs_only_its_own_point(journal: Path, damage: bytes) -> None:
    first, second = journal.read_bytes().splitlines()
    journal.write_bytes(first + b"\n" + damage + b"\n" + second + b"\n")
    assert read_journal(journal) == POINTS
    assert mend_journal(journal) == POINTS
    assert journal.read_bytes().splitlines() == [first, second]


def test_journal_counts_the_tokens_of_the_whole_training() -> None:
    cost = {"loss": 1.0, "tokens_per_second": 500.0, "seconds_per_step": 4.0}
    points = [Point(10, 30, 0.0, cost), Point(20, 30, 0.0, {"eval_loss": 1.0})]
    assert tokens_before_sharing(points) == 30 * 2000
    assert tokens_before_sharing([]) == 0
