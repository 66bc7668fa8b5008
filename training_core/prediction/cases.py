"""Files of cases: every line that is not blank is a case, or one that cannot be asked, with the reason."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from training_core.rows.files import BadFileError, client_errors_as_os_errors
from training_core.rows.locate import locate_files
from training_core.rows.reader import Rejected, Row, read_rows
from training_core.rows.strict_json import DataError, Problem, Record

# Cases of one policy are answered together within a window; the memory that a window takes is bounded by both.
_WINDOW_LINES, _WINDOW_BYTES = 4_096, 32 * 2**20


class Case(NamedTuple):
    """One line: its place, and its record without an answer, or why it cannot be asked."""

    file: str
    line: int
    record: Record | None
    error: str | None = None


class Source(NamedTuple):
    """A file, and the name that its lines are reported under."""

    path: str
    name: str


@dataclass(frozen=True)
class Cases:
    """Files that were read through once: how many lines they have, and the digest of their names and lines.

    ``not_read`` names the other files of a folder, each with the reason.
    """

    sources: tuple[Source, ...]
    lines: int
    digest: str
    not_read: dict[str, str]

    def windows(self) -> Iterator[list[Case]]:
        """The cases in their order, in lists of bounded size that depend on the lines alone.

        Raises ``DataError`` at the end when the files are not what they were.
        """
        digest, window, size = hashlib.sha256(), list[Case](), 0
        for source, item in _read(self.sources, digest):
            if found := _as_case(source, item):
                window.append(found)
                size += len(item.raw)
            if len(window) == _WINDOW_LINES or size >= _WINDOW_BYTES:
                yield window
                window, size = [], 0
        if window:
            yield window
        if digest.hexdigest() != self.digest:
            raise DataError("The files of cases changed while they were read; run again when they are complete")


def find_cases(path: str, name: str | None = None) -> Cases:
    """All files of a path, a glob, a folder or a URL, in any format and container of rows; answers are not needed.

    ``name`` is what a single file is called in reports. Raises ``FileNotFoundError`` where there are none, and
    ``DataError`` for a file that cannot be read to its end: half of an upload is not answered.
    """
    with client_errors_as_os_errors():
        located = locate_files(path)
    sources = tuple(Source(file, name or file) for file in located.files)
    digest = hashlib.sha256()
    lines = sum(_as_case(source, item) is not None for source, item in _read(sources, digest))
    return Cases(sources, lines, digest.hexdigest(), located.not_read)


def _read(sources: tuple[Source, ...], digest: Any) -> Iterator[tuple[Source, Row | Rejected]]:
    """Every line of the files, which are added to the digest."""
    for source in sources:
        digest.update(source.name.encode() + b"\0")
        try:
            for item in read_rows(source.path, answered=False):
                digest.update(item.raw + b"\n")
                yield source, item
        except BadFileError as error:
            raise DataError(f"{source.name}: {error}") from error


def _as_case(source: Source, item: Row | Rejected) -> Case | None:
    """``None`` for a further piece of a line that is too long: the first has the problem."""
    if isinstance(item, Row):
        return Case(source.name, item.line, {key: item.record[key] for key in item.record if key != "output"})
    return Case(source.name, item.problem.line, None, _reason(item.problem)) if item.problem else None


def _reason(problem: Problem) -> str:
    return f"{problem.field}: {problem.what}; {problem.fix}"
