"""Plants bad lines of every known kind among good ones."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any, NamedTuple

GOOD = "good"
DUPLICATE = "duplicate"
OVERLONG_CHARS = 40_000
DUPLICATE_WINDOW = 100

Row = dict[str, Any]


class Line(NamedTuple):
    """One line of a rows file with its line end, and the kind of line it is."""

    kind: str
    data: bytes


def to_line(row: Row) -> bytes:
    """Return a row as one line of JSON with its line end."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def truncated_json(row: Row) -> bytes:
    """Truncate the line in the middle."""
    line = to_line(row)
    return line[: len(line) // 2] + b"\n"


def missing_output(row: Row) -> bytes:
    """Remove the output."""
    return to_line({key: value for key, value in row.items() if key != "output"})


def empty_reason(row: Row) -> bytes:
    """Empty the reason."""
    return to_line({**row, "output": {**row["output"], "reason": ""}})


def empty_response(row: Row) -> bytes:
    """Replace the customer response with blanks."""
    return to_line({**row, "output": {**row["output"], "customer_response": "   "}})


def text_output(row: Row) -> bytes:
    """Replace the output with a sentence."""
    return to_line({**row, "output": "The request was looked at and settled."})


def null_input(row: Row) -> bytes:
    """Replace the input with null."""
    return to_line({**row, "input": None})


def null_decision(row: Row) -> bytes:
    """Replace the decision with null."""
    return to_line({**row, "output": {**row["output"], "decision": None}})


def invalid_utf8(row: Row) -> bytes:
    """Put bytes that are not UTF-8 into the customer message."""
    return to_line(row).replace(b'"customer_message": "', b'"customer_message": "\xff\xfe', 1)


def nan_constant(row: Row) -> bytes:
    """Add NaN, which is not JSON, to the facts."""
    return to_line({**row, "input": {**row["input"], "refund_amount": float("nan")}})


def overlong(row: Row) -> bytes:
    """Repeat the customer response until the row is overlong; the row is valid otherwise."""
    response = row["output"]["customer_response"]
    repeated = " ".join([response] * (1 + OVERLONG_CHARS // (len(response) + 1)))
    return to_line({**row, "output": {**row["output"], "customer_response": repeated}})


CORRUPTIONS: dict[str, Callable[[Row], bytes]] = {
    corruption.__name__: corruption
    for corruption in (
        truncated_json,
        missing_output,
        empty_reason,
        empty_response,
        text_output,
        null_input,
        null_decision,
        invalid_utf8,
        nan_constant,
        overlong,
    )
}
BAD_KINDS = (*CORRUPTIONS, DUPLICATE)


def plant_bad_lines(rows: Iterable[Row], share: float, seed: int) -> Iterator[Line]:
    """Yield one line per row; about `share` of the rows become bad lines, of every kind equally often.

    A duplicate is a copy of an earlier good line. The first line is always good.
    """
    if not 0 <= share < 1:
        raise ValueError(f"expected a share of bad lines of at least 0 and less than 1, got {share}")
    rng = Random(seed)
    earlier: deque[bytes] = deque(maxlen=DUPLICATE_WINDOW)
    kinds: list[str] = []
    for row in rows:
        if not earlier or rng.random() >= share:
            earlier.append(to_line(row))
            yield Line(GOOD, earlier[-1])
            continue
        kinds = kinds or rng.sample(BAD_KINDS, len(BAD_KINDS))
        kind = kinds.pop()
        yield Line(kind, rng.choice(earlier) if kind == DUPLICATE else CORRUPTIONS[kind](row))
