"""Databases that cannot be used are named before anything starts; what is left of a deleted one harms no new one."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from tasks.databases import forget_deleted, require_intact, sqlite_problem
from training_core.config import SettingsError


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A SQLite database of several pages."""
    file = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as opened, opened:
        opened.execute("CREATE TABLE rows (text TEXT)")
        opened.executemany("INSERT INTO rows VALUES (?)", [(f"{number:0500}",) for number in range(100)])
    return file


def test_intact_database_has_no_problem(database: Path) -> None:
    assert sqlite_problem(database) == ""
    assert sqlite_problem(database.with_name("missing.db")) == ""


def test_locked_database_has_no_problem(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.databases._SECONDS_LOCKED", 0.1)
    with contextlib.closing(sqlite3.connect(database)) as other, other:
        other.execute("BEGIN EXCLUSIVE")
        assert sqlite_problem(database) == ""


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_database_that_was_cut_is_damaged(database: Path, share: float) -> None:
    content = database.read_bytes()
    database.write_bytes(content[: int(len(content) * share)])
    assert "damaged" in sqlite_problem(database)


@pytest.mark.parametrize("place", [0, 4096, 8192])
def test_database_with_overwritten_bytes_is_damaged(database: Path, place: int) -> None:
    content = bytearray(database.read_bytes())
    content[place : place + 64] = b"\xff" * 64
    database.write_bytes(content)
    with pytest.raises(SettingsError, match=r"it is damaged .*; put a copy of it back, or move it away"):
        require_intact(database)


def test_folder_in_the_place_of_a_database_is_named(tmp_path: Path) -> None:
    assert "found a folder" in sqlite_problem(tmp_path)


def test_log_of_a_deleted_database_is_deleted(database: Path) -> None:
    (journal := database.with_name("mlflow.db-journal")).touch()
    forget_deleted(database)
    assert journal.exists()
    database.unlink()
    forget_deleted(database)
    assert not journal.exists()
