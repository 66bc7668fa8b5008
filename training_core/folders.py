"""Folders that are complete or do not count: a manifest with every file's digest is written last and checked first."""

import hashlib
import json
import os
from pathlib import Path

MANIFEST = "manifest.json"


def seal(folder: Path) -> str:
    """Declare a folder complete: write its manifest, and return the digest of the manifest."""
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in _content(folder)}
    text = json.dumps(digests, indent=1, sort_keys=True)
    draft = folder / f"{MANIFEST}.draft"
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MANIFEST)
    return hashlib.sha256(text.encode()).hexdigest()


def seal_digest(folder: Path) -> str | None:
    """The digest that ``seal`` returned, or ``None`` when a file is missing or changed since."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    content = manifest.read_bytes()
    try:
        digests = dict(json.loads(content))
    except (ValueError, TypeError):  # cut off, or not a manifest
        return None
    intact = all((folder / name).is_file() and _sha256(folder / name) == digest for name, digest in digests.items())
    return hashlib.sha256(content).hexdigest() if intact and digests else None


def _content(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
