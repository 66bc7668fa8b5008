"""The formats of rows, each read as the same record.

A record is a case, `{"instruction": str, "input": {..., "policy_document": str}, "output": {...}}`, or, where the
case is not given as JSON, a conversation, `{"messages": [{"role": str, "content": str}, ...], "output": {...}}`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import NoReturn

from training_core.rows.strict_json import (
    ANSWER_FIELDS,
    HOW_TO_WRITE_ROWS,
    BadLineError,
    Record,
    check_object,
    check_record,
    check_text,
    describe_value,
    parse_json,
    strip_edges,
)
from training_core.rows.turns import Turn, are_turns, check_turns, read_turn, read_turns, unread_keys_of_turns

_ONE_FORMAT = "use one format per file"
_HOW_TO_ANSWER = f"write the whole answer as one JSON object with {', '.join(ANSWER_FIELDS)}, and no other text"
_MOVE = "write it as a message"
_DESCRIBE = "describe them in a message"
_CONTEXT = {
    **{"system": _MOVE, "system_prompt": _MOVE, "history": f"{_MOVE}s"},
    **{"tools": _DESCRIBE, "functions": _DESCRIBE, "documents": f"{_MOVE}s"},
}


@dataclass(frozen=True)
class RowFormat:
    """One format of rows: its name, its keys, and whether every row has its case as JSON."""

    name: str
    keys: tuple[str, ...]
    holds_cases: bool

    def __str__(self) -> str:
        return self.name if self.name == "native" else f"{self.name}, {'cases' if self.holds_cases else 'free text'}"


def detect_format(value: object) -> RowFormat | None:
    """The format of a row, detected from its keys and their types; ``None`` if it is unknown.

    For conversations this also decides whether the rows of the file have their cases as JSON.
    """
    if not isinstance(value, dict):
        return None
    for name, schema in _SCHEMAS.items():
        if all(isinstance(value.get(key), kind) for key, kind in schema.keys.items()):
            return RowFormat(name, tuple(schema.keys), name == "native" or _holds_case(schema, value))
    return None


def reject_unknown_format(value: object) -> NoReturn:
    """Raises the most helpful ``BadLineError`` for a row of unknown format."""
    row = check_object("line", value)
    if row.keys() & _SCHEMAS["native"].keys.keys():
        check_text("instruction", row.get("instruction"), keys=row.keys() - _SCHEMAS["native"].keys.keys())
        check_record(row)
    keys = ", ".join(ascii(key)[1:-1] for key in row)[:80] or "no keys"
    raise BadLineError("line", f"expected the keys of a known row format, got {keys}", _fix_of_keys(row))


def _fix_of_keys(row: Record) -> str:
    """Other tools write the rows into an object, or name keys with other letters."""
    for key, value in row.items():
        if key in ("messages", "conversations") or (isinstance(value, list) and are_turns(value)):
            return f'write {describe_value(key)} as messages: [{{"role": …, "content": …}}]'
    inner = [key for key, value in row.items() if isinstance(value, list | dict) and value]
    if inner and not any(isinstance(value, str) for value in row.values()):
        return f"write what is in {describe_value(inner[0])} without the object around it"
    if {key.strip().casefold() for key in row} >= _SCHEMAS["native"].keys.keys():
        return "write the keys instruction, input and output in small letters"
    return HOW_TO_WRITE_ROWS


def unread_keys(row: Record, row_format: RowFormat) -> frozenset[str]:
    """The keys of a row that are not read, those of its turns as ``messages[].name``."""
    turns = {key: row[key] for key in row_format.keys if isinstance(row.get(key), list)}
    of_turns = {f"{key}[].{name}" for key, found in turns.items() for name in unread_keys_of_turns(found)}
    return frozenset((row.keys() - row_format.keys) | of_turns)


def to_record(value: object, row_format: RowFormat, allowed_decisions: tuple[str, ...] = ()) -> Record:
    """A row of this format as a checked and normalised record; raises ``BadLineError`` for the first problem."""
    row = check_object("line", value)
    _reject_unread_context(row, row_format)
    if row_format.name == "native":
        record = {key: row.get(key) for key in row_format.keys}
    else:
        *question, (_, answer) = check_turns(_SCHEMAS[row_format.name].read(row))
        record = _read_question(row_format, question) | {"output": _read_answer(answer)}
    check_record(record, allowed_decisions)
    return strip_edges(record)


def _read_answer(text: str) -> object:
    """The output in the text of an answer. The fix of an error says what an answer is: most chats have another."""
    output = _parse_text("assistant", text, _HOW_TO_ANSWER)
    try:
        check_record({"messages": [], "output": output})
    except BadLineError as error:
        raise BadLineError(*error.args[:2], _HOW_TO_ANSWER) from error
    return output


def _read_question(row_format: RowFormat, question: list[Turn]) -> Record:
    case = _find_case(question)
    if (case is not None) != row_format.holds_cases:
        with_case, without = "a text that ends in a case as JSON with its policy_document", "free text"
        expected, found = (with_case, without) if case is None else (without, with_case)
        raise BadLineError("user", f"expected {expected}, as in earlier rows, got {found}", _ONE_FORMAT)
    return case or _as_conversation(question)


def _holds_case(schema: "_Schema", value: Record) -> bool:
    try:
        return _find_case(schema.read(value)[:-1]) is not None
    except BadLineError:
        return False


def read_question(messages: object) -> Record:
    """Messages without their answer as the record without output that training makes of them.

    Raises ``BadLineError`` for the first problem.
    """
    if not isinstance(messages, list) or not messages:
        what = f"expected a list of messages, got {describe_value(messages)}"
        raise BadLineError("messages", what, 'write [{"role": …, "content": …}]')
    question = [read_turn(turn) for turn in messages]
    check_turns([*question, ("assistant", "")])
    return _find_case(question) or _as_conversation(question)


def _find_case(question: list[Turn]) -> Record | None:
    """Instruction and case of `[system,] user`, if the user's text ends in the case as JSON."""
    if [role for role, _ in question] not in (["user"], ["system", "user"]):
        return None
    *system, (_, user) = question
    head, brace, tail = user.rpartition("\n\n{")
    if not brace and user.startswith("{"):
        brace, tail = "{", user[1:]
    if not brace or not tail.endswith("}") or "policy_document" not in tail:
        return None
    case = _parse_text("user", f"{{{tail}", "end the text with the case as one JSON object")
    if not isinstance(case, dict) or "policy_document" not in case:
        return None
    return {"instruction": "\n\n".join(text for text in (*(text for _, text in system), head) if text), "input": case}


def _as_conversation(question: list[Turn]) -> Record:
    return {"messages": [{"role": role, "content": text} for role, text in question]}


def _parse_text(field: str, text: str, fix: str) -> object:
    """The JSON value of a text within a line. The fix of an error is about the text, not about the line."""
    try:
        return parse_json(text.encode())
    except BadLineError as error:
        raise BadLineError(field, error.args[1], fix) from error


def _reject_unread_context(row: Record, row_format: RowFormat) -> None:
    """Keys with which other tools add to a conversation: a model trained without them would learn another task."""
    for key in _CONTEXT:
        if key not in row_format.keys and row.get(key):
            what = (
                f"expected all of the conversation in {' and '.join(row_format.keys)}, got {describe_value(row[key])}"
            )
            raise BadLineError(key, what, _CONTEXT[key])


def _ask(question: str, answer: str) -> list[Turn]:
    return read_turns([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


@dataclass(frozen=True)
class _Schema:
    """The type of each key of a format, and how its conversation is read from them."""

    keys: dict[str, type | UnionType]
    turns: Callable[[Record], list[Turn]]

    def read(self, value: Record) -> list[Turn]:
        for key, kind in self.keys.items():
            if not isinstance(value.get(key), kind):
                expected = "a list" if kind is list else "text"
                what = f"expected {expected}, as in earlier rows, got {describe_value(value.get(key))}"
                raise BadLineError(key, what, _ONE_FORMAT)
        return self.turns(value)


_SCHEMAS = {
    "native": _Schema({"instruction": str, "input": dict, "output": dict}, lambda value: []),
    "messages": _Schema({"messages": list}, lambda value: read_turns(value["messages"])),
    "conversations": _Schema({"conversations": list}, lambda value: read_turns(value["conversations"])),
    "alpaca": _Schema(
        {"instruction": str, "input": str | None, "output": str},
        lambda value: _ask("\n\n".join(filter(None, (value["instruction"], value.get("input")))), value["output"]),
    ),
    "prompt/completion": _Schema(
        {"prompt": str, "completion": str}, lambda value: _ask(value["prompt"], value["completion"])
    ),
    "prompt/completion turns": _Schema(
        {"prompt": list, "completion": list},
        lambda value: read_turns([*value["prompt"], *value["completion"]]),
    ),
}

ROW_KEYS = frozenset(key for schema in _SCHEMAS.values() for key in schema.keys) | _CONTEXT.keys()
