"""Strict JSON for rows: no duplicate keys, no lost digits, nothing that a model cannot be trained on."""

import codecs
import difflib
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from training_core.escaping import shown

ANSWER_FIELDS = ("decision", "reason", "customer_response", "next_action")
MAX_DEPTH = 64
HOW_TO_WRITE_ROWS = "see 'Your own rows' in the README"

# All control characters but tab, newline, carriage return and U+0085 (next line), which are text.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")

# The same in the bytes of a line, escaped or not, after any number of complete escapes.
_CONTROL_BYTES = re.compile(
    rb"((?<!\\)(?:\\\\)*)(?:\\[bf]|\\u00(?:0[0-8bcefBCEF]|1.|7[fF]|8[0-46-9a-fA-F]|9.)|\x7f|\xc2[\x80-\x84\x86-\x9f])"
)
# A string is one match, so that quotes, colons and braces inside it do not count.
_KEYS_AND_BRACES = re.compile(rb'(?P<key>"(?:[^"\\]|\\.)*")[ \t\n\r]*:|"(?:[^"\\]|\\.)*"|[{}]')
_AMBIGUOUS = object()
_ESCAPED = re.compile(rb"\\[ubf]")
_KEY_END = re.compile(rb'"[ \t\n\r]*:')

Record = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why a line is rejected: where, what was expected and found, and how to fix it."""

    file: str
    line: int
    field: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.what}; {self.fix}"


class DataError(ValueError):
    """The rows are not fit to train on."""

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


class BadLineError(ValueError):
    """A line that is not a row. Arguments: the field, what was expected and found, how to fix it."""


def parse_json(raw: bytes) -> Any:
    """The JSON value of a line, in Unicode's composed form (NFC).

    Raises ``BadLineError`` for invalid JSON, and also for duplicate keys, NaN and infinities, lone surrogates, control
    characters and more than ``MAX_DEPTH`` levels. Qwen's tokenizers normalise to NFC; after doing it here, the tokens
    of an answer decode to exactly that answer.
    """
    if raw.startswith(codecs.BOM_UTF8):
        raw = raw.replace(codecs.BOM_UTF8, b"   ", 1)  # white space of the same length keeps byte positions
    value = _parse_quickly(raw)
    if value is _AMBIGUOUS:
        value = _parse_exactly(raw)
    escaped = _ESCAPED.search(raw) or b"\x7f" in raw
    if raw.isascii() and not escaped:
        return value
    if escaped or b"\xc2" in raw:  # the first UTF-8 byte of the control characters from U+0080 on
        _reject_control_characters(value, raw)
    if all(unicodedata.is_normalized("NFC", text) for text in _texts(value)):
        return value
    return compose(_parse_exactly(raw))  # which also finds keys that are equal only when composed


# orjson is ten times faster than Python's parser, but it keeps the last of two equal keys and rounds integers beyond 64
# bits. Instead of a hook per object, count: every key in a line ends in `":`, so a line with as many key ends as the
# parsed value has keys has lost none. Quotes inside strings are escaped, so `\":` is no key end.
#
#     line                        key ends    of them \":    keys in the value
#     {"a": 1, "b": {"c": 2}}     3           0              3                    →  the value
#     {"a": "the \"b\": key"}     2           1              1                    →  the value
#     {"a": 1, "a": 2}            2           0              1                    →  _AMBIGUOUS
#     {"id": 12345678901234567890123}         (orjson returns a float)            →  _AMBIGUOUS
#
# In `\\":` the quote is not escaped after all, so a line with it is ambiguous unless it has as many key ends as keys.
# Python's parser reads ambiguous lines again (``_parse_exactly``) and reports what is wrong, if anything is.
def _parse_quickly(raw: bytes) -> Any:
    try:
        value = orjson.loads(raw)
        keys = _count_keys([value], MAX_DEPTH + 1)
    except (orjson.JSONDecodeError, OverflowError):
        return _AMBIGUOUS
    ends = len(_KEY_END.findall(raw))
    none_lost = keys == ends or (keys == ends - raw.count(b'\\":') and b'\\\\":' not in raw)
    return value if none_lost else _AMBIGUOUS


def _count_keys(value: Any, levels: int) -> int:
    """The number of keys at all levels: 3 for ``{"a": [{"b": 1}], "c": 2}``.

    Raises ``OverflowError`` for a float that may be a rounded integer, and ``BadLineError`` below ``levels`` levels.
    """
    if not levels:
        raise _too_deep()
    keys = len(value) if type(value) is dict else 0
    for item in _children(value):
        kind = type(item)
        if kind is dict or kind is list:
            keys += _count_keys(item, levels - 1)
        elif kind is float and not -(2**63) < item < 2**63:
            raise OverflowError
    return keys


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    if isinstance(value, dict):
        yield from value
    for item in _children(value):
        yield from _texts(item)


def _too_deep() -> BadLineError:
    return BadLineError("line", f"expected at most {MAX_DEPTH} levels of nesting, got more", "flatten the row")


def _check_depth(value: Any, levels: int) -> None:
    if not levels and isinstance(value, dict | list):
        raise _too_deep()
    for item in _children(value):
        _check_depth(item, levels - 1)


def _parse_exactly(raw: bytes) -> Any:
    """The value from Python's own parser, which keeps every digit and reports what is wrong and where."""
    try:
        text, hook = raw.decode("utf-8"), partial(_unique_keys, raw=raw)
        value = json.loads(text, object_pairs_hook=hook, parse_constant=partial(_reject_constant, raw))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeDecodeError as error:
        utf_16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = "UTF-16" if utf_16 else f"an invalid byte at byte {error.start}"
        raise BadLineError("line", f"expected UTF-8, got {found}", "save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        what = f"expected whole characters, got a lone surrogate at byte {_byte_rejected(raw)}"
        raise BadLineError("line", what, "remove the broken character") from error
    except BadLineError:
        raise
    except json.JSONDecodeError as error:
        raise _invalid_json(error, raw) from error
    except ValueError as error:  # a number of more digits than Python reads, or an infinite one
        what = f"expected finite numbers of at most {sys.get_int_max_str_digits()} digits, got a larger one"
        raise BadLineError("line", what, "write a smaller number, or write it as text") from error
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(value, MAX_DEPTH)
    return value


def _invalid_json(error: json.JSONDecodeError, raw: bytes) -> BadLineError:
    if 4 * raw.count(0) > len(raw):  # no byte order mark begins a file's further lines
        return BadLineError("line", "expected UTF-8, got UTF-16 or bytes of zero", "save the file as UTF-8")
    place = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
    what = error.msg.removesuffix(" at").removesuffix(" starting")
    fix = "write one complete JSON object per line"
    if b"\r" in raw.rstrip(b"\r\n"):
        fix = "end lines with a newline, not with a carriage return"
    elif what == "Extra data":
        fix = f"{fix}, and nothing after it"
    return BadLineError("line", f"invalid JSON at byte {place}: {what}", fix)


def _unique_keys(pairs: list[tuple[str, Any]], raw: bytes = b"") -> dict[str, Any]:
    counts = Counter(unicodedata.normalize("NFC", key) for key, _ in pairs)
    duplicates = [key for key, count in counts.items() if count > 1]
    if duplicates:
        key, place = _find_duplicate_key(raw) or (duplicates[0], None)
        what = "expected each key once in an object, got a duplicate" + (f" at byte {place}" if place else "")
        raise BadLineError(ascii(key)[1:-1][:60], what, "keep one of the two")
    return dict(pairs)


def _find_duplicate_key(raw: bytes) -> tuple[str, int] | None:
    """The first key of a line that its object already has, and the byte at which it occurs again."""
    seen: list[set[str]] = []
    for token in _KEYS_AND_BRACES.finditer(raw):
        if token[0] == b"{":
            seen.append(set())
        elif token[0] == b"}":
            seen.pop()
        elif token["key"]:
            key = unicodedata.normalize("NFC", json.loads(token["key"]))
            if key in seen[-1]:
                return key, token.start()
            seen[-1].add(key)
    return None


def _reject_constant(raw: bytes, name: str) -> None:
    what = f"expected null or a finite number, got {name} at byte {_byte_rejected(raw)}"
    raise BadLineError("line", what, "write null or a finite number")


def _byte_rejected(raw: bytes) -> int:
    """The byte at which orjson, which rejects NaN and lone surrogates, stops."""
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return len(error.doc[: error.pos].encode())
    return len(raw)


def _reject_control_characters(value: Any, raw: bytes) -> None:
    for text in _texts(value):
        if found := _CONTROL.search(text):
            context = ascii(text[max(0, found.start() - 20) : found.end() + 20])[1:-1]
            in_line = _CONTROL_BYTES.search(raw)
            place = f" at byte {in_line.end(1)}" if in_line else ""
            what = f"expected text, got control character U+{ord(found[0]):04X}{place} in '{context}'"
            raise BadLineError("line", what, "remove it")


def compose(value: Any) -> Any:
    """The same JSON value with every string in NFC; raises ``BadLineError`` for keys that become equal."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list):
        return [compose(item) for item in value]
    if isinstance(value, dict):
        return _unique_keys([(compose(key), compose(item)) for key, item in value.items()])
    return value


def normalise(record: Record) -> Record:
    """A row, or a case without output, in the form used in training and serving: in NFC, white space stripped.

    Raises ``BadLineError`` for keys that become equal in NFC.
    """
    return strip_edges(compose(record))


def strip_edges(record: Record) -> Record:
    """The record without white space around the texts of its prompt; the answer is unchanged."""
    if "messages" in record:
        return record | {
            "messages": [message | {"content": message["content"].strip()} for message in record["messages"]]
        }
    case = record["input"] | {"policy_document": record["input"]["policy_document"].strip()}
    return record | {"instruction": record["instruction"].strip(), "input": case}


def check_record(record: Record, allowed_decisions: tuple[str, ...] = ()) -> None:
    """Raises ``BadLineError`` for the first field that is missing, empty, of the wrong type or not allowed."""
    if "messages" not in record:
        check_text("instruction", record.get("instruction"))
        case = check_object("input", record.get("input"))
        check_text("input.policy_document", case.get("policy_document"), keys=case)
    output = check_object("output", record.get("output"))
    for field in ANSWER_FIELDS:
        check_text(f"output.{field}", output.get(field), keys=output)
    if allowed_decisions and output["decision"] not in allowed_decisions:
        what = f"expected one of allowed_decisions, got {describe_value(output['decision'])}"
        raise BadLineError("output.decision", what, f"use one of {', '.join(allowed_decisions)}")


def check_object(field: str, value: object) -> Record:
    """The value of a field if it is an object; raises ``BadLineError`` otherwise."""
    if not isinstance(value, dict):
        is_written = isinstance(value, str) and value.lstrip().startswith("{")
        fix = "write the object itself, not its text" if is_written else HOW_TO_WRITE_ROWS
        raise BadLineError(field, f"expected an object, got {describe_value(value)}", fix)
    return value


def check_text(field: str, value: object, keys: Iterable[str] = ()) -> str:
    """The value of a field if it is a string that is not blank; raises ``BadLineError`` otherwise.

    ``keys`` are those of its object: one of them may be meant.
    """
    if not isinstance(value, str) or not value.strip():
        fix = "write a non-empty string"
        if value is None and (meant := _like(field.rpartition(".")[2], keys)):
            fix += f", or rename {describe_value(meant)} if it is meant"
        raise BadLineError(field, f"expected a non-empty string, got {describe_value(value)}", fix)
    return value


def _like(name: str, keys: Iterable[str]) -> str | None:
    """The key that is most like a name, apart from capitals and what is no letter: ``Decision``, ``policy``."""
    others = {"".join(filter(str.isalpha, key)).casefold(): key for key in keys}
    found = difflib.get_close_matches(name.replace("_", ""), others, n=1)
    return others[found[0]] if found else None


def field_value(case: Record, path: str) -> Any:
    """The value of a case's field: of the name itself, or of a path such as ``order.id``; ``None`` if there is none."""
    name, _, rest = path.partition(".")
    if path in case or not rest:
        return case.get(path)
    inner = case.get(name)
    return field_value(inner, rest) if isinstance(inner, dict) else None


def with_paths(case: Record, parent: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a case, those of its objects by path: ``order``, ``order.id``."""
    for name, value in case.items():
        yield parent + name, value
        if isinstance(value, dict):
            yield from with_paths(value, f"{parent}{name}.")


def describe_value(value: object) -> str:
    """A found value for a message, on one line and at most 60 characters."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = "null or nothing" if value is None else ascii(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
