"""The shapes in which rows come, each turned into the same record.

A record is a case, `{"instruction": str, "input": {..., "policy_document": str}, "output": {...}}`, or, where the
case is not given as JSON, a conversation, `{"messages": [{"role": str, "content": str}, ...], "output": {...}}`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import NoReturn

from training_core.rows.strict_json import BadLineError, Record, check_record, parse_json, strip_edges

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_ROLES = ("system", "user", "assistant")

Turn = tuple[str, str]


@dataclass(frozen=True)
class RowFormat:
    """One shape of rows: the keys it has, and whether every row holds its case as JSON."""

    name: str
    keys: tuple[str, ...]
    holds_cases: bool

    def __str__(self) -> str:
        return self.name if self.name == "native" else f"{self.name}, {'cases' if self.holds_cases else 'free text'}"


def detect_format(value: object) -> RowFormat | None:
    """The shape of a row, by its keys; ``None`` when it is none that is known.

    Whether conversations hold their cases as JSON is decided here too.
    """
    if not isinstance(value, dict):
        return None
    for name, shape in _SHAPES.items():
        if all(isinstance(value.get(key), kind) for key, kind in shape.keys.items()):
            return RowFormat(name, tuple(shape.keys), name == "native" or _holds_case(shape, value))
    return None


def reject_unknown_format(value: object) -> NoReturn:
    """Raises the ``BadLineError`` that helps most for a row of no known shape."""
    if not isinstance(value, dict):
        raise BadLineError("line", f"a {type(value).__name__}, not an object", 'write {"instruction": …}')
    if value.keys() & _SHAPES["native"].keys.keys():
        check_record(value)
    keys = ", ".join(ascii(key)[1:-1] for key in value)[:80] or "none"
    raise BadLineError("line", f"no known shape of row has these keys: {keys}", "see 'Your own rows' in the README")


def to_record(value: object, row_format: RowFormat, allowed_decisions: tuple[str, ...] = ()) -> Record:
    """A row of this shape as a record, checked and normalised; raises ``BadLineError`` for the first thing amiss."""
    if not isinstance(value, dict):
        raise BadLineError("line", f"a {type(value).__name__}, not an object", 'write {"instruction": …}')
    if row_format.name == "native":
        record = {key: value.get(key) for key in row_format.keys}
    else:
        *question, (_, answer) = _in_turn(_SHAPES[row_format.name].read(value))
        record = _read_as(row_format, question) | {"output": _parse_text("assistant", answer)}
    check_record(record, allowed_decisions)
    return strip_edges(record)


def _read_as(row_format: RowFormat, question: list[Turn]) -> Record:
    case = _find_case(question)
    if (case is not None) != row_format.holds_cases:
        what = "does not end in a case as JSON with its policy_document" if case is None else "ends in a case as JSON"
        raise BadLineError("user", f"{what}, unlike rows before", "give rows of one kind in a file")
    return case or _as_conversation(question)


def _holds_case(shape: "_Shape", value: Record) -> bool:
    try:
        return _find_case(shape.read(value)[:-1]) is not None
    except BadLineError:
        return False


def read_question(messages: object) -> Record:
    """What is asked by messages without their answer, as the record without output that training makes of them.

    Raises ``BadLineError`` for the first thing amiss.
    """
    if not isinstance(messages, list) or not messages:
        raise BadLineError("messages", "no list of messages", 'write [{"role": …, "content": …}]')
    question = [_read_turn(turn) for turn in messages]
    _in_turn([*question, ("assistant", "")])
    return _find_case(question) or _as_conversation(question)


def _find_case(question: list[Turn]) -> Record | None:
    """Instruction and case of `[system,] user`, where the user's text ends in the case as JSON."""
    if [role for role, _ in question] not in (["user"], ["system", "user"]):
        return None
    *system, (_, user) = question
    head, brace, tail = user.rpartition("\n\n{")
    if not brace and user.startswith("{"):
        brace, tail = "{", user[1:]
    if not brace or not tail.endswith("}") or "policy_document" not in tail:
        return None
    case = _parse_text("user", f"{{{tail}")
    if not isinstance(case, dict) or "policy_document" not in case:
        return None
    return {"instruction": "\n\n".join(text for text in (*(text for _, text in system), head) if text), "input": case}


def _as_conversation(question: list[Turn]) -> Record:
    return {"messages": [{"role": role, "content": text} for role, text in question]}


def _in_turn(turns: list[Turn]) -> list[Turn]:
    roles = [role for role, _ in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        what = f"the turns are {', '.join(roles)}"[:80]
        raise BadLineError("messages", what, "let user and assistant take turns, after the system if there is one")
    return turns


def _parse_text(field: str, text: str) -> object:
    try:
        return parse_json(text.encode())
    except BadLineError as error:
        raise BadLineError(field, *error.args[1:]) from error


def _read_turns(turns: list[object]) -> list[Turn]:
    if len(turns) < 2:
        raise BadLineError("messages", f"{len(turns)} turns", "give a question and its answer")
    return [_read_turn(turn) for turn in turns]


def _read_turn(turn: object) -> Turn:
    if not isinstance(turn, dict):
        raise BadLineError("messages", f"a turn is a {type(turn).__name__}", 'write {"role": …, "content": …}')
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    role = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in _ROLES:
        raise BadLineError("messages", f"role {ascii(role)[:40]}", f"give one of {', '.join(_ROLES)}")
    if not isinstance(text, str) or not text.strip():
        raise BadLineError("messages", f"the {role}'s turn holds no text", "give a text that is not empty")
    return role, text.strip()


def _ask(question: str, answer: str) -> list[Turn]:
    return _read_turns([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


@dataclass(frozen=True)
class _Shape:
    """The kind of value each key has, and how the conversation is read from them."""

    keys: dict[str, type | UnionType]
    turns: Callable[[Record], list[Turn]]

    def read(self, value: Record) -> list[Turn]:
        for key, kind in self.keys.items():
            if not isinstance(value.get(key), kind):
                found = "missing or null" if value.get(key) is None else f"a {type(value[key]).__name__}"
                raise BadLineError(key, f"{found}, unlike rows before", "give rows of one shape in a file")
        return self.turns(value)


_SHAPES = {
    "native": _Shape({"instruction": str, "input": dict, "output": dict}, lambda value: []),
    "messages": _Shape({"messages": list}, lambda value: _read_turns(value["messages"])),
    "conversations": _Shape({"conversations": list}, lambda value: _read_turns(value["conversations"])),
    "alpaca": _Shape(
        {"instruction": str, "input": str | None, "output": str},
        lambda value: _ask("\n\n".join(filter(None, (value["instruction"], value.get("input")))), value["output"]),
    ),
    "prompt/completion": _Shape(
        {"prompt": str, "completion": str}, lambda value: _ask(value["prompt"], value["completion"])
    ),
    "prompt/completion turns": _Shape(
        {"prompt": list, "completion": list},
        lambda value: _read_turns([*value["prompt"], *value["completion"]]),
    ),
}
