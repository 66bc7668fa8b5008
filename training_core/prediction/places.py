"""Files on this machine or at a URL that are there as a whole or not at all."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from training_core.folders import complete_file
from training_core.rows.files import client_errors_as_os_errors

# Protocols that only read, and one whose files end with the process.
_KEEP_NOTHING = ("http", "https", "github", "gist", "git", "data", "zip", "tar", "libarchive", "reference", "memory")


@contextlib.contextmanager
def whole_file(place: str) -> Iterator[IO[bytes]]:
    """Yield a stream whose content is at a path or URL when the body ends without an error.

    Object stores show a file only when it is complete. Raises ``OSError`` when the store fails.
    """
    path = local_path(place)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(path) as draft, draft.open("wb") as stream:
            yield stream
        return
    with tempfile.NamedTemporaryFile() as file:
        yield file
        file.flush()
        with client_errors_as_os_errors():
            system, target = fsspec.core.url_to_fs(place)
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(file.name, target)


def local_path(place: str) -> Path | None:
    """The path of a place on this machine; ``None`` for a URL of another."""
    system, path = fsspec.core.url_to_fs(place)
    return Path(path) if isinstance(system, LocalFileSystem) else None


@client_errors_as_os_errors()
def read_file(place: str) -> bytes | None:
    """The content of a file, or ``None`` if there is none."""
    system, path = fsspec.core.url_to_fs(place)
    return bytes(system.cat_file(path)) if system.exists(path) else None


def keeps_files(url: str) -> bool:
    """Whether files can be written to a URL of this protocol, and are there when this process has ended."""
    return "::" not in url and split_protocol(url)[0] not in _KEEP_NOTHING


def read_object(place: str) -> dict[str, Any]:
    """A file of one JSON object; empty where there is no file, or a damaged one."""
    with contextlib.suppress(ValueError):
        found = json.loads(read_file(place) or b"")
        return found if isinstance(found, dict) else {}
    return {}


@client_errors_as_os_errors()
def names_in(folder: str) -> set[str]:
    """The names of the files in a folder; empty without a folder."""
    system, path = fsspec.core.url_to_fs(folder)
    system.invalidate_cache()
    found = system.ls(path, detail=False) if system.exists(path) else []
    return {str(name).rstrip("/").rpartition("/")[2] for name in found}


@client_errors_as_os_errors()
def delete(folder: str) -> None:
    """Delete a folder and all that it holds, if it is there."""
    system, path = fsspec.core.url_to_fs(folder)
    if system.exists(path):
        system.rm(path, recursive=True)


@client_errors_as_os_errors()
def digest_of(place: str) -> str | None:
    """The SHA-256 of a file, or ``None`` if there is none."""
    system, path = fsspec.core.url_to_fs(place)
    if not system.exists(path):
        return None
    with system.open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
