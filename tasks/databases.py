"""Whether a database can be opened: one sentence at once, where those who use it retry for minutes."""

import contextlib
import os
import sqlite3
import threading
from pathlib import Path

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from training_core.config import SettingsError

_IN_USE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOGS = ("-wal", "-shm", "-journal")  # what SQLite itself writes next to a database
_SECONDS_LOCKED = 1
_REPLACE = "put a copy of it back, or move it away: then the next run makes a new one, without the registry's history"
_ALLOW = "see that this user may read and write it and its folder, and that the disk has space"


def database_problem(address: str, seconds: float) -> str:
    """Why the database of this URL cannot be opened within ``seconds``; empty where it can, and for what is no database
    (MLflow knows more kinds of stores). A SQLite file that is not there yet is no problem."""
    file = sqlite_file(address)
    if file:
        return sqlite_problem(file)
    try:
        url = make_url(address)
        return _connection_problem(create_engine(url, poolclass=NullPool), seconds)
    except (ArgumentError, NoSuchModuleError, ValueError):
        return ""
    except ImportError as error:
        return f"the driver is not installed ({error})"


def sqlite_file(address: str) -> Path | None:
    """The file of a SQLite database's URL; ``None`` for another address."""
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        return None
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def sqlite_problem(file: Path) -> str:
    """Why a SQLite database cannot be used. A locked one can: its users wait."""
    if file.exists() and not os.access(file, os.R_OK):
        return f"this user may not read it; {_ALLOW}"
    try:
        return _damage(file)
    except sqlite3.DatabaseError as error:
        return "" if _primary_code(error) in _IN_USE else f"it cannot be opened ({error}); {_ALLOW}"


def sqlite_damage(file: Path) -> str:
    """What is wrong with the content of a SQLite database; empty also where it cannot be opened to look."""
    with contextlib.suppress(sqlite3.DatabaseError):
        return _damage(file)
    return ""


def _damage(file: Path) -> str:
    """Raises ``sqlite3.DatabaseError`` when the database cannot be opened, or is locked."""
    if not file.exists():
        return ""
    if not file.is_file():
        return "expected a SQLite database, found a folder"
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_SECONDS_LOCKED)) as database:
            found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if _primary_code(error) not in _DAMAGED:
            raise
        found = str(error)
    return "" if found == "ok" else f"it is damaged ({found.splitlines()[-1]})"


def _primary_code(error: sqlite3.DatabaseError) -> int:
    """SQLite's code without what it says more: a database that is busy with its recovery is a busy one."""
    return error.sqlite_errorcode & 0xFF


def require_intact(store: Path) -> None:
    """Raise ``SettingsError`` when MLflow's database in an output folder cannot be used."""
    if problem := sqlite_problem(store):
        fix = f"; {_REPLACE}" if sqlite_damage(store) else ""
        raise SettingsError([f"output_dir: {str(store)!r}: {problem}{fix}"])


def has_content(file: Path) -> bool:
    """Whether there is a database; a file without a byte is none."""
    return file.exists() and (file.is_dir() or file.stat().st_size > 0)


def forget_deleted(file: Path) -> None:
    """Delete what is left of a SQLite database that was deleted: SQLite would read it into the new one."""
    if not has_content(file):
        for ending in _LOGS:
            file.with_name(f"{file.name}{ending}").unlink(missing_ok=True)


def _connection_problem(engine: Engine, seconds: float) -> str:
    """Asked in a thread, since every driver has its own name for a time limit, and some have none."""
    errors = ["no answer (timed out)"]
    asking = threading.Thread(target=_connect, args=(engine, errors), daemon=True)
    asking.start()
    asking.join(seconds)
    return errors[-1]


def _connect(engine: Engine, errors: list[str]) -> None:
    try:
        with engine.connect():
            errors.append("")
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", None) or error)
        errors.append(f"no answer ({' '.join(why.split())})")
