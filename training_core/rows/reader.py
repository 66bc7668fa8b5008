"""Files as rows: each line a usable row or a named problem, in the order of the file."""

import codecs
from collections.abc import Iterator
from typing import NamedTuple

from training_core.rows.files import LONGEST_LINE, Line, read_lines
from training_core.rows.formats import RowFormat, detect_format, reject_unknown_format, to_record
from training_core.rows.strict_json import BadLineError, Problem, Record, parse_json


class Row(NamedTuple):
    """A usable row: where it stands, what it says, its bytes there, the shape it came in, and keys nobody reads."""

    file: str
    line: int
    record: Record
    raw: bytes
    shape: RowFormat
    unknown_keys: frozenset[str]


class Rejected(NamedTuple):
    """A line that cannot be used. One that is too long comes in pieces: the first has a problem, the last ``ends``."""

    problem: Problem | None
    raw: bytes
    ends: bool = True


def read_rows(file: str, allowed_decisions: tuple[str, ...] = ()) -> Iterator[Row | Rejected]:
    """Every line of a file that is not blank. The first usable row settles the shape of all rows of the file.

    Raises ``BadFileError`` where the file cannot be read on; what comes before has been given out by then.
    """
    shape: RowFormat | None = None
    for line in read_lines(file):
        if not line.complete:
            yield Rejected(_too_long(file, line), line.raw, line.ends)
            continue
        if _is_blank(line.raw):
            continue
        try:
            value = parse_json(line.raw)
            found = shape or detect_format(value)
            if found is None:
                reject_unknown_format(value)
            record = to_record(value, found, allowed_decisions)
        except BadLineError as bad:
            yield Rejected(Problem(file, line.number, *bad.args), line.raw)
        else:
            shape = found
            yield Row(file, line.number, record, line.raw, shape, frozenset(value.keys() - shape.keys))


def _is_blank(raw: bytes) -> bool:
    """JSON's white space and nothing else: what is thrown away must show in the account."""
    return not raw.startswith(b"{") and not raw.removeprefix(codecs.BOM_UTF8).strip(b" \t\r\n")


def _too_long(file: str, line: Line) -> Problem | None:
    if not line.number:
        return None
    what = f"longer than {LONGEST_LINE // 2**20} MiB"
    return Problem(file, line.number, "line", what, "write one row a line, or close the text that never ends")
