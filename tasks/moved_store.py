"""The SQLite store of MLflow in an output folder: it follows when a person moves or copies the folder."""

import contextlib
import json
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"

_LOCKED_SECONDS = 60
# MLflow stores absolute URIs only: it reads a relative one from the working directory.
_URIS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow_move(store: Path, path_tag: str) -> None:
    """Let the store name the artifacts next to it, when it names those of the folder that it was in before.

    ``path_tag`` is the tag of runs whose JSON has paths of that folder. Does nothing where the store came alone.
    """
    now = store.parent
    if not (now / ARTIFACTS).is_dir():
        return
    with contextlib.closing(sqlite3.connect(store, timeout=_LOCKED_SECONDS)) as database, database:
        for before in _folders_named(database) - {now}:
            for table, column in _URIS:
                _replace(database, table, column, f"{before.as_uri()}/", f"{now.as_uri()}/")
            paths = (json.dumps(f"{folder}/")[1:-1] for folder in (before, now))
            database.execute("UPDATE tags SET value = replace(value, ?, ?) WHERE key = ?", (*paths, path_tag))


def _folders_named(database: sqlite3.Connection) -> set[Path]:
    found = database.execute("SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%'")
    places = [local_path(uri) for (uri,) in found]
    return {place.parent for place in places if place and place.name == ARTIFACTS}


def _replace(database: sqlite3.Connection, table: str, column: str, before: str, now: str) -> None:
    beginning = f"substr({column}, 1, {len(before)})"
    database.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, {len(before) + 1}) WHERE {beginning} = ?", (now, before)
    )


def local_path(uri: str) -> Path | None:
    """The path of a ``file:`` URI; ``None`` for another one."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
