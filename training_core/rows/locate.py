"""Which files a path of rows means: a file, a glob, a folder or a URL; and which files of a folder are not read."""

import hashlib
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from training_core.escaping import is_seen
from training_core.rows.files import open_file

COMPRESSIONS = ("", ".gz", ".zst", ".bz2", ".xz")
SUFFIXES = (*(kind + end for kind in (".jsonl", ".ndjson", ".json") for end in COMPRESSIONS), ".parquet")


class Located(NamedTuple):
    """The files of rows at a path, sorted by name, and for each other file of the folder why it is not read."""

    files: list[str]
    not_read: dict[str, str]


def find_files(path: str) -> list[str]:
    """The files of ``locate_files``."""
    return locate_files(path).files


def locate_files(path: str) -> Located:
    """The files of a path, a glob, a folder (all files of rows in it, at any depth) or a URL.

    Files and folders whose names begin with a dot are hidden and left out, as a shell does. Links are followed. Raises
    ``FileNotFoundError`` if there is no file of rows, and ``ImportError`` naming the package that a URL needs.
    """
    is_url = "://" in path
    is_here = not is_url and os.path.lexists(path)
    system, place = (LocalFileSystem(), path) if is_here else fsspec.core.url_to_fs(path)
    if system.isfile(place):
        return Located([path], {})
    if system.isdir(place):
        reasons = dict(_remote_files(system, place) if is_url else _local_files(place))
    else:
        # In a store of objects, isdir lists a folder; a file that is not there is to be named on this machine only.
        is_meant = system.isfile if is_url else lambda file: not system.isdir(file)
        matches = [file for file in system.glob(place) if is_meant(file) and _chosen(file, place)]
        reasons = {file: "" if is_url else _by_kind(file) for file in matches}
    files = sorted(file for file, reason in reasons.items() if not reason)
    not_read = {_printable(file): reason for file, reason in sorted(reasons.items()) if reason}
    if not files:
        expected = f"expected a file, folder, glob or URL of rows, found no file at {path!r}; check the path"
        raise FileNotFoundError("\n".join([expected, *(f"  {file}: {reason}" for file, reason in not_read.items())]))
    return Located([system.unstrip_protocol(file) if is_url else file for file in files], not_read)


def digest_files(path: str) -> bytes:
    """SHA-256 over the contents of all files of a path."""
    digest = hashlib.sha256()
    for file in find_files(path):
        with open_file(file) as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.digest()


def _chosen(file: str, pattern: str) -> bool:
    """Whether a glob means this file: hidden names only where the pattern has a dot."""
    given = PurePosixPath(pattern).parts
    hidden = [part for part in PurePosixPath(file).parts if _is_hidden(part)]
    return all(any(fnmatch(part, one) for one in given if _is_hidden(one)) for part in hidden)


def _remote_files(system: fsspec.AbstractFileSystem, folder: str) -> Iterator[tuple[str, str]]:
    """Each file of a folder that is not hidden, and why it is not read: nothing for a file of rows."""
    for file in system.find(folder):
        parts = PurePosixPath(file.removeprefix(folder).lstrip("/")).parts
        if not any(map(_is_hidden, parts)):
            yield file, _by_name(parts)


def _local_files(root: str) -> Iterator[tuple[str, str]]:
    """The same on this machine: through links, each folder once, whatever cannot be opened with the reason."""
    unreadable: list[OSError] = []
    visited = set()
    for parent, folders, names in os.walk(root, onerror=unreadable.append, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        if os.path.realpath(parent) in visited:  # a link back to a folder that is read already
            folders.clear()
            continue
        visited.add(os.path.realpath(parent))
        for name in names:
            file = os.path.join(parent, name)  # noqa: PTH118  fsspec returns names as text, too
            if not _is_hidden(name):
                yield file, _by_name(PurePosixPath(os.path.relpath(file, root)).parts) or _by_kind(file)
    for error in unreadable:
        yield str(error.filename), f"the folder cannot be opened: {error.strerror}"


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _by_name(parts: tuple[str, ...]) -> str:
    """Why a file is not read, from its place in the folder."""
    if any(part.startswith("_") for part in parts):
        return "a name that begins with _ marks what Spark and Hive keep next to rows; rename it if it has rows"
    if not parts[-1].lower().endswith(SUFFIXES):
        kinds, ends = ".jsonl, .ndjson, .json", ", ".join(filter(None, COMPRESSIONS))
        return f"expected a name that ends in {kinds} (also with {ends}) or .parquet"
    return ""


def _by_kind(file: str) -> str:
    """Why a file of this machine is not read although its name is one of rows."""
    if file != _printable(file):
        return "its name is not UTF-8, or has control characters; rename it"
    if not os.path.exists(file):  # noqa: PTH110
        return "a link to a file that does not exist; remove or mend it"
    return "" if os.path.isfile(file) else "not a regular file"  # noqa: PTH113


def _printable(name: str) -> str:
    r"""A file name as text: ``caf\xe9.jsonl`` for one in Latin-1, and ``\n`` for a newline."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(sign if is_seen(sign) else ascii(sign)[1:-1] for sign in text)
