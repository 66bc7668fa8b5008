"""Atomic writes: a folder or a file is either complete or absent.

Both are written under a draft name and renamed when complete. A sealed folder also has a manifest with the SHA-256 of
every file, so that later damage is detected.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"


@contextlib.contextmanager
def complete_folder(folder: Path, *, seal_it: bool = True) -> Iterator[Path]:
    """Yield an empty draft folder that is sealed and replaces ``folder`` when the body ends without an error.

    With ``seal_it=False`` the body writes the manifest itself. A body that raises leaves ``folder`` unchanged and no
    draft; the draft of a killed process is deleted by the next call.
    """
    draft = folder.with_name(f"{folder.name}.draft")
    _delete(draft)
    draft.mkdir(parents=True)
    try:
        yield draft
        if seal_it:
            seal(draft)
        _delete(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Yield the path of a draft file that is flushed to disk and replaces ``path`` when the body ends without an error.

    A body that raises leaves ``path`` unchanged and no draft.
    """
    draft = path.with_name(f"{path.name}.draft")
    _delete(draft)
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def seal(folder: Path) -> str:
    """Mark a folder as complete: write its manifest and return the SHA-256 of the manifest."""
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in _content(folder)}
    text = json.dumps(digests, indent=1, sort_keys=True)
    with complete_file(folder / MANIFEST) as draft:
        draft.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def seal_digest(folder: Path) -> str | None:
    """The digest that ``seal`` returned, or ``None`` if the folder is not sealed or a file is missing or changed."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    content = manifest.read_bytes()
    try:
        digests = dict(json.loads(content))
    except (ValueError, TypeError):  # truncated, or not a manifest
        return None
    intact = all((folder / name).is_file() and _sha256(folder / name) == digest for name, digest in digests.items())
    return hashlib.sha256(content).hexdigest() if intact and digests else None


def _delete(path: Path) -> None:
    """Delete a folder, or a file or link that is in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _content(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
