"""Files as rows: every line of a file becomes a row or is rejected with a reason, in the order of the file."""

import codecs
from collections.abc import Iterator
from typing import NamedTuple

from training_core.rows.files import MAX_LINE_BYTES, Line, read_lines
from training_core.rows.formats import ROW_KEYS, RowFormat, detect_format, reject_unknown_format, to_record, unread_keys
from training_core.rows.questions import with_stand_in
from training_core.rows.strict_json import BadLineError, Problem, Record, parse_json


class Row(NamedTuple):
    """A usable row: file, line number, record, original bytes, format, and keys that are not used."""

    file: str
    line: int
    record: Record
    raw: bytes
    format: RowFormat
    unknown_keys: frozenset[str]


class Rejected(NamedTuple):
    """A rejected line. One that is too long is yielded in pieces: the first has the problem, the last has ``ends``."""

    problem: Problem | None
    raw: bytes
    ends: bool = True


def read_rows(file: str, allowed_decisions: tuple[str, ...] = (), *, answered: bool = True) -> Iterator[Row | Rejected]:
    """Every line of a file that is not blank. The first usable row sets the format of all rows of the file.

    With ``answered=False`` rows need no answer, and every record has a stand-in for it (see ``with_stand_in``).
    Raises ``BadFileError`` where the file cannot be read, after yielding everything before that place.
    """
    row_format: RowFormat | None = None
    for line in read_lines(file, ROW_KEYS):
        if not line.complete:
            yield Rejected(_too_long(file, line), line.raw, line.ends)
            continue
        if _is_blank(line.raw):
            continue
        try:
            value = parse_json(line.raw)
            if not answered:
                value = with_stand_in(value, row_format.name if row_format else None)
            found = row_format or detect_format(value)
            if found is None:
                reject_unknown_format(value)
            record = to_record(value, found, allowed_decisions)
        except BadLineError as bad:
            yield Rejected(Problem(file, line.number, *bad.args), line.raw)
        else:
            row_format = found
            yield Row(file, line.number, record, line.raw, row_format, unread_keys(value, row_format))


def _is_blank(raw: bytes) -> bool:
    """Whether a line has only JSON's white space; any other line must be accounted for."""
    return not raw.startswith(b"{") and not raw.removeprefix(codecs.BOM_UTF8).strip(b" \t\r\n")


def _too_long(file: str, line: Line) -> Problem | None:
    if not line.number:
        return None
    what = f"expected at most {MAX_LINE_BYTES // 2**20} MiB, got a longer line"
    return Problem(file, line.number, "line", what, "write one row per line, or close an unterminated string")
