"""Rows of which only the question counts: with an answer, with a broken one or without, they are the same row."""

import json

from training_core.rows.strict_json import ANSWER_FIELDS

_ANSWER = dict.fromkeys(ANSWER_FIELDS, "-")
_TEXT = json.dumps(_ANSWER)
_TURN = {"role": "assistant", "content": _TEXT}


def with_stand_in(value: object, row_format: str | None = None) -> object:
    """A row with a stand-in for its answer, so that it is read by the rules of rows to train on.

    ``row_format`` is the name of the file's format, once that is known. Before, an ``instruction`` with a text as its
    ``input`` or ``output`` is Alpaca's, and native without.
    """
    if not isinstance(value, dict):
        return value
    for key in ("messages", "conversations"):
        if isinstance(value.get(key), list) and (asked := _without_answer(value[key])):
            return value | {key: [*asked, _TURN]}
    if "prompt" in value:
        return value | {"completion": [_TURN] if isinstance(value["prompt"], list) else _TEXT}
    if value.keys() & {"instruction", "input"}:
        has_text = any(isinstance(value.get(key), str) for key in ("input", "output"))
        is_alpaca = row_format == "alpaca" if row_format else has_text
        return value | {"output": _TEXT if is_alpaca else _ANSWER}
    return value


def _without_answer(turns: list[object]) -> list[object]:
    last = turns[-1] if turns else None
    role = (last.get("role") or last.get("from")) if isinstance(last, dict) else None
    return turns[:-1] if role in ("assistant", "gpt") else turns
