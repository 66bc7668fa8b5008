"""One line of a file as a row, or the reason why it is none."""

import json
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any

ANSWER_FIELDS = ("decision", "reason", "customer_response", "next_action")

Record = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why a line cannot be used: where, what, and how to mend it."""

    file: str
    line: int
    field: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.what}; {self.remedy}"


@dataclass(frozen=True)
class Row:
    """A usable row and the place it stands at."""

    file: str
    line: int
    record: Record


class DataError(ValueError):
    """The rows are not fit to train on."""


class BadLineError(ValueError):
    """A line that is no row. Its arguments: the field, what is wrong with it, how to mend it."""


def parse_row(raw: bytes) -> Record:
    """The native row on a line; raises ``BadLineError`` naming the first field that cannot be used."""
    try:
        text = raw.decode("utf-8-sig")
        record = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLineError("line", f"byte {error.start} is not UTF-8", "save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        raise BadLineError("line", "a lone surrogate stands in a text", "remove the broken character") from error
    except BadLineError:
        raise
    except ValueError as error:  # JSONDecodeError, or a number of more digits than Python reads
        raise BadLineError("line", f"not JSON: {error}", "write one object a line") from error
    except RecursionError as error:
        raise BadLineError("line", "nested too deeply", "flatten the row") from error
    _check_fields(record)
    return normalise(record)


def normalise(record: Record) -> Record:
    """The row, or the case still without output, as training and serving see it: accents composed, edges stripped.

    Qwen's tokenizers compose accents (NFC); composed here, an answer is its own tokens to the letter.
    """
    composed: Record = json.loads(unicodedata.normalize("NFC", json.dumps(record, ensure_ascii=False)))
    composed["instruction"] = composed["instruction"].strip()
    composed["input"]["policy_document"] = composed["input"]["policy_document"].strip()
    return composed


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise BadLineError(ascii(twice[0])[1:-1][:60], "stands twice in one object", "keep one of the two")
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise BadLineError("line", f"{name} is not JSON", "write null or a number")


def _check_fields(record: object) -> None:
    if not isinstance(record, dict):
        raise BadLineError("line", f"a {type(record).__name__}, not an object", 'write {"instruction": …}')
    _check_text("instruction", record.get("instruction"))
    for field in ("input", "output"):
        if not isinstance(record.get(field), dict):
            raise BadLineError(field, f"{_show(record.get(field))} is no object", "see 'Your own rows' in the README")
    _check_text("input.policy_document", record["input"].get("policy_document"))
    for field in ANSWER_FIELDS:
        _check_text(f"output.{field}", record["output"].get(field))


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise BadLineError(field, f"{_show(value)} is no text", "give a text that is not empty")


def _show(value: object) -> str:
    return "missing or null" if value is None else ascii(value)[:60]
