"""The turns of a conversation: roles and texts, in the order that a model is trained on."""

from training_core.rows.strict_json import BadLineError, Record, check_object, check_text, describe_value

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_ROLES = ("system", "user", "assistant")
_CALLS = ("tool_calls", "function_call")
_TURN_KEYS = {"role", "content", "from", "value", *_CALLS, "weight"}
_TEXTS = ("text", "input_text", "output_text")  # the last two as in OpenAI's Responses

Turn = tuple[str, str]


def read_turns(turns: list[object]) -> list[Turn]:
    """A question and its answer, with what was said before; raises ``BadLineError`` for the first problem."""
    if len(turns) < 2:
        what = f"expected a question and its answer, got {len(turns)} messages"
        raise BadLineError("messages", what, "write at least a user and an assistant message")
    if isinstance(turns[-1], dict) and turns[-1].get("weight") == 0:
        raise BadLineError(
            "messages", "expected an answer to train on, got one of weight 0", "remove the row or the weight"
        )
    return [read_turn(turn) for turn in turns]


def read_turn(value: object) -> Turn:
    """Role and text of a turn; raises ``BadLineError`` for the first problem."""
    turn = check_object("messages", value)
    if calls := [key for key in _CALLS if turn.get(key)]:
        raise BadLineError(
            "messages", f"expected text only, got {', '.join(calls)}", "write the call as text, or remove it"
        )
    role, text = _either(turn, "role", "from"), _read_parts(_either(turn, "content", "value"))
    role = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in _ROLES:
        what = f"expected the role {', '.join(_ROLES[:-1])} or {_ROLES[-1]}, got {describe_value(role)}"
        raise BadLineError("messages", what, "rename the role or remove the message")
    if isinstance(text, dict):
        raise BadLineError(str(role), "expected a text, got an object", "write the object as JSON text")
    return role, check_text(str(role), text).strip()


def _either(turn: Record, name: str, other: str) -> object:
    """A value that two formats name differently."""
    first, second = turn.get(name), turn.get(other)
    if None not in (first, second) and first != second:
        raise BadLineError(
            "messages", f"expected {name} or {other}, got both with different values", "keep one of them"
        )
    return second if first is None else first


def _read_parts(content: object) -> object:
    """The text of a content that is given as a list of parts, `[{"type": "text", "text": "…"}]`, if all are texts."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") in _TEXTS else part for part in content]
    if not all(isinstance(text, str) for text in texts):
        kinds = [part.get("type") for part in content if isinstance(part, dict)]
        others = dict.fromkeys(describe_value(kind) for kind in kinds if kind not in _TEXTS)
        found = ", ".join(others) or "parts without text"
        raise BadLineError("messages", f"expected parts of type text, got {found}"[:100], "remove what is not text")
    return "".join(map(str, texts))


def check_turns(turns: list[Turn]) -> list[Turn]:
    """The same turns, if user and assistant alternate and the assistant ends; raises ``BadLineError`` otherwise."""
    roles = [role for role, _ in turns]
    dialogue = roles[1:] if roles[:1] == ["system"] else roles
    if not dialogue or dialogue != ["user", "assistant"] * (len(dialogue) // 2):
        what = f"expected user and assistant in turn, got {', '.join(roles)}"[:100]
        raise BadLineError("messages", what, "alternate user and assistant, with at most one system message, the first")
    return turns


def are_turns(values: list[object]) -> bool:
    """Whether a list looks like the turns of a conversation."""
    return all(isinstance(value, dict) and value.keys() & {"role", "from"} for value in values)


def unread_keys_of_turns(turns: list[Record]) -> set[str]:
    """The keys with a value that the turns have and that are not read."""
    empty: tuple[object, ...] = (None, "", [], {})
    return {name for turn in turns for name, value in turn.items() if name not in _TURN_KEYS and value not in empty}
