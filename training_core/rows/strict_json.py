"""JSON as strict as a row has to be: nothing said twice, nothing lost, nothing that cannot be taught."""

import codecs
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

ANSWER_FIELDS = ("decision", "reason", "customer_response", "next_action")
DEEPEST = 64

# Tab, newline and return are text, and so is U+0085 (next line); no other control character is.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")

# The same in a line, escaped or not, behind any number of whole escapes.
_CONTROL_WRITTEN = re.compile(
    rb"((?<!\\)(?:\\\\)*)(?:\\[bf]|\\u00(?:0[0-8bcefBCEF]|1.|7[fF]|8[0-46-9a-fA-F]|9.)|\x7f|\xc2[\x80-\x84\x86-\x9f])"
)
# Strings are matched whole, so that what stands in them is no key and no brace.
_KEYS_AND_BRACES = re.compile(rb'(?P<key>"(?:[^"\\]|\\.)*")[ \t\n\r]*:|"(?:[^"\\]|\\.)*"|[{}]')
_AMBIGUOUS = object()
_ESCAPED = re.compile(rb"\\[ubf]")
_KEY_END = re.compile(rb'"[ \t\n\r]*:')

Record = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why a line cannot be used: where, what, and how to mend it."""

    file: str
    line: int
    field: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.what}; {self.fix}"


class DataError(ValueError):
    """The rows are not fit to train on."""


class BadLineError(ValueError):
    """A line that is no row. Its arguments: the field, what is wrong with it, how to mend it."""


def parse_json(raw: bytes) -> Any:
    """The value that a line's JSON says, with accents composed; raises ``BadLineError`` for anything doubtful.

    Rejected besides broken JSON: keys that stand twice, NaN and infinities, lone surrogates, control characters,
    nesting below 64 levels. Qwen's tokenizers compose accents (NFC); composed here, an answer is its own tokens to the
    letter.
    """
    if raw.startswith(codecs.BOM_UTF8):
        raw = raw.replace(codecs.BOM_UTF8, b"   ", 1)  # white space, so that later bytes keep their numbers
    value = _parse_quickly(raw)
    if value is _AMBIGUOUS:
        value = _parse_exactly(raw)
    escaped = _ESCAPED.search(raw) or b"\x7f" in raw
    if raw.isascii() and not escaped:
        return value
    if escaped or b"\xc2" in raw:  # in UTF-8 the control characters from U+0080 on begin so
        _reject_control_characters(value, raw)
    if all(unicodedata.is_normalized("NFC", text) for text in _texts(value)):
        return value
    return compose(_parse_exactly(raw))  # which also finds keys that are the same once composed


def _parse_quickly(raw: bytes) -> Any:
    """What orjson reads, or ``_AMBIGUOUS``: it lets the last of equal keys win, and rounds integers beyond 64 bits.

    Every key ends in a quote and a colon. Where the line has as many such ends as the value has keys, none was lost;
    inside a text the quote is escaped.
    """
    try:
        value = orjson.loads(raw)
        keys = _count_keys([value], DEEPEST + 1)
    except (orjson.JSONDecodeError, OverflowError):
        return _AMBIGUOUS
    ends = len(_KEY_END.findall(raw))
    if keys != ends and (keys != ends - raw.count(b'\\":') or b'\\\\":' in raw):  # or a key ends in a backslash
        return _AMBIGUOUS
    return value


def _count_keys(value: Any, levels: int) -> int:
    """The keys in a JSON value at any level; raises ``OverflowError`` for a number that may have lost digits."""
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
    """Every text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    if isinstance(value, dict):
        yield from value
    for item in _children(value):
        yield from _texts(item)


def _too_deep() -> BadLineError:
    return BadLineError("line", f"nested deeper than {DEEPEST} levels", "flatten the row")


def _check_depth(value: Any, levels: int) -> None:
    if not levels and isinstance(value, dict | list):
        raise _too_deep()
    for item in _children(value):
        _check_depth(item, levels - 1)


def _parse_exactly(raw: bytes) -> Any:
    """Python's own parser, ten times slower: it keeps every digit, and tells what is wrong."""
    try:
        text, hook = raw.decode("utf-8"), partial(_unique_keys, raw=raw)
        value = json.loads(text, object_pairs_hook=hook, parse_constant=partial(_reject_constant, raw))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeDecodeError as error:
        utf_16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        what = "the file is UTF-16" if utf_16 else f"byte {error.start} is not UTF-8"
        raise BadLineError("line", what, "save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        what = f"a lone surrogate stands in a text, at byte {_byte_rejected(raw)}"
        raise BadLineError("line", what, "remove the broken character") from error
    except BadLineError:
        raise
    except json.JSONDecodeError as error:
        place = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        what = error.msg.removesuffix(" at").removesuffix(" starting")
        raise BadLineError("line", f"not JSON at byte {place}: {what}", _json_fix(raw)) from error
    except ValueError as error:  # a number of more digits than Python reads, or an infinite one
        raise BadLineError("line", f"not JSON: {error}", "write a smaller number") from error
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(value, DEEPEST)
    return value


def _json_fix(raw: bytes) -> str:
    if b"\r" in raw.rstrip(b"\r\n"):
        return "end lines with a newline, not with a carriage return"
    return "write one whole object a line"


def _unique_keys(pairs: list[tuple[str, Any]], raw: bytes = b"") -> dict[str, Any]:
    twice = [key for key, count in Counter(unicodedata.normalize("NFC", key) for key, _ in pairs).items() if count > 1]
    if twice:
        key, place = _find_twin(raw) or (twice[0], None)
        what = "stands twice in one object" + (f", again at byte {place}" if place else "")
        raise BadLineError(ascii(key)[1:-1][:60], what, "keep one of the two")
    return dict(pairs)


def _find_twin(raw: bytes) -> tuple[str, int] | None:
    """The first key of a line that stood in its object before, and the byte where it stands again."""
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
    raise BadLineError("line", f"{name} at byte {_byte_rejected(raw)} is not JSON", "write null or a number")


def _byte_rejected(raw: bytes) -> int:
    """Where orjson, which knows neither NaN nor lone surrogates, stops reading."""
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return len(error.doc[: error.pos].encode())
    return len(raw)


def _reject_control_characters(value: Any, raw: bytes) -> None:
    for text in _texts(value):
        if found := _CONTROL.search(text):
            near = ascii(text[max(0, found.start() - 20) : found.end() + 20])[1:-1]
            written = _CONTROL_WRITTEN.search(raw)
            place = f" at byte {written.end(1)}" if written else ""
            what = f"control character U+{ord(found[0]):04X}{place} near '{near}'"
            raise BadLineError("line", what, "remove it")


def compose(value: Any) -> Any:
    """The same JSON value with accents composed (NFC) in every key and text; raises ``BadLineError`` if keys meet."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list):
        return [compose(item) for item in value]
    if isinstance(value, dict):
        return _unique_keys([(compose(key), compose(item)) for key, item in value.items()])
    return value


def normalise(record: Record) -> Record:
    """The row, or the case still without output, as training and serving see it: accents composed, edges stripped.

    Raises ``BadLineError`` when two keys are the same but for how their accents are written.
    """
    return strip_edges(compose(record))


def strip_edges(record: Record) -> Record:
    """The record without white space around its texts of the prompt; the answer stays as it is."""
    if "messages" in record:
        return record | {
            "messages": [message | {"content": message["content"].strip()} for message in record["messages"]]
        }
    case = record["input"] | {"policy_document": record["input"]["policy_document"].strip()}
    return record | {"instruction": record["instruction"].strip(), "input": case}


def check_record(record: Record, allowed_decisions: tuple[str, ...] = ()) -> None:
    """Raises ``BadLineError`` naming the first field that is missing, empty, of the wrong type or not allowed."""
    if "messages" not in record:
        _check_text("instruction", record.get("instruction"))
        _check_object("input", record.get("input"))
        _check_text("input.policy_document", record["input"].get("policy_document"))
    output = _check_object("output", record.get("output"))
    for field in ANSWER_FIELDS:
        _check_text(f"output.{field}", output.get(field))
    if allowed_decisions and output["decision"] not in allowed_decisions:
        what = f"{ascii(output['decision'])[:60]} is no allowed decision"
        raise BadLineError("output.decision", what, f"give one of {', '.join(allowed_decisions)} (allowed_decisions)")


def _check_object(field: str, value: object) -> Record:
    if not isinstance(value, dict):
        raise BadLineError(field, f"{_show(value)} is no object", "see 'Your own rows' in the README")
    return value


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise BadLineError(field, f"{_show(value)} is no text", "give a text that is not empty")


def _show(value: object) -> str:
    return "missing or null" if value is None else ascii(value)[:60]
