"""Databases that cannot be used are named before anything starts; what is left of a deleted one harms no new one."""

import contextlib
import sqlite3
from pathlib import Path
from unittest.mock import Mock

import pytest

from tasks.databases import forget_deleted, require_intact, sqlite_damage, sqlite_problem
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


@pytest.fixture
def unopened(database: Path) -> Path:
    """An intact database that nobody can open: a folder is in the place of its log."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        opened.execute("PRAGMA journal_mode=WAL")
    database.with_name(f"{database.name}-wal").mkdir()
    return database


def test_database_that_cannot_be_opened_is_not_called_damaged(unopened: Path) -> None:
    assert sqlite_damage(unopened) == ""
    with pytest.raises(
        SettingsError, match=r"it cannot be opened \(unable to open database file\); see that"
    ) as raised:
        require_intact(unopened)
    assert "put a copy" not in str(raised.value)


@pytest.mark.parametrize("code", ["BUSY", "BUSY_RECOVERY", "BUSY_SNAPSHOT", "LOCKED", "LOCKED_SHAREDCACHE"])
def test_database_in_use_has_no_problem_whatever_its_code(
    database: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{code}")
    monkeypatch.setattr("tasks.databases.sqlite3.connect", Mock(side_effect=error))
    assert (sqlite_problem(database), sqlite_damage(database)) == ("", "")


@pytest.mark.parametrize("code", ["CORRUPT_INDEX", "CORRUPT_VTAB", "NOTADB"])
def test_database_is_damaged_whatever_its_code(database: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    error = sqlite3.DatabaseError("malformed")
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{code}")
    monkeypatch.setattr("tasks.databases.sqlite3.connect", Mock(side_effect=error))
    assert sqlite_damage(database) == sqlite_problem(database) == "it is damaged (malformed)"


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


def test_copies_of_a_deleted_database_are_kept(database: Path) -> None:
    copies = [database.with_name(f"mlflow.db-{name}") for name in ("damaged", "copy-of-friday", "wal-of-friday")]
    for copy in copies:
        copy.touch()
    (folder := database.with_name("mlflow.db-old")).mkdir()
    logs = [database.with_name(f"mlflow.db-{name}") for name in ("wal", "shm", "journal")]
    for log in logs:
        log.touch()
    database.unlink()
    forget_deleted(database)
    assert all(place.exists() for place in (*copies, folder))
    assert not any(log.exists() for log in logs)
