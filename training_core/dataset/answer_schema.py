"""The form of the training rows' answers as a JSON schema, which a model's answers can be held to."""

import json
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from datasets import Dataset

from training_core.dataset.encoding import IGNORED_LABEL
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.rows.strict_json import Record

Schema = dict[str, Any]
Form = tuple[Any, ...]

DECISION = "decision"
MOST_SEQUENCES = 64  # of keys in one place; an object with more is a map, whose keys mean something
DEEPEST = 5  # objects and lists within each other where anything is allowed

_ROWS_AT_ONCE = 1_000
_LARGEST = 10**15


def answer_schema(train: Dataset, encoder: ChatEncoder) -> Schema:
    """The schema of the answers of encoded training rows, each of which it allows.

    Keys are in the order of the rows: every sequence of keys that occurs is one alternative, so an optional key is
    there or not as in some row. The decision is one of the rows' decisions. Texts are not empty where no row's is.
    """
    forms: set[Form] = set()
    for batch in train.select_columns(["labels"]).with_format("numpy").iter(_ROWS_AT_ONCE):
        ids = [labels[labels != IGNORED_LABEL] for labels in batch["labels"]]
        forms |= {_form(json.loads(answer)) for answer in encoder.decode_answers(ids)}
    return schema_of(forms, sorted(set(train[DECISION][:])))


def schema_of_answers(answers: Iterable[Record]) -> Schema:
    """The same from answers as records."""
    kept = list(answers)
    return schema_of({_form(answer) for answer in kept}, sorted({answer[DECISION] for answer in kept}))


def schema_of(forms: Iterable[Form], decisions: list[str]) -> Schema:
    """The schema of answers of these forms; ``any_object`` where they have too many sequences of keys."""
    found = _any_of(set(forms))
    if found == _ANYTHING["object"]:
        return any_object()
    for one in found.get("anyOf", [found]):
        one["properties"][DECISION] = {"enum": decisions}
    return found | ({"$defs": _definitions()} if "$ref" in json.dumps(found) else {})


def any_object() -> Schema:
    """The schema of any JSON object, with at most ``DEEPEST`` objects and lists within each other."""
    return _ANYTHING["object"] | {"$defs": _definitions()}


def _form(value: Any) -> Form:
    """What a value tells about the schema: equal for values that differ in texts, numbers and lengths only."""
    if isinstance(value, dict):
        return ("object", tuple((name, _form(part)) for name, part in value.items()))
    if isinstance(value, list):
        return ("array", tuple(sorted(set(map(_form, value)), key=repr)))
    if isinstance(value, str):
        return ("string", bool(value.strip()))
    names = {bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return (names[type(value)], None)


def _any_of(forms: set[Form]) -> Schema:
    ordered = sorted(forms, key=lambda form: form[0])
    kinds = {kind: {content for _, content in same} for kind, same in groupby(ordered, lambda form: form[0])}
    if "number" in kinds:
        kinds.pop("integer", None)
    found = [schema for kind, contents in kinds.items() for schema in _of_kind(kind, contents)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _of_kind(kind: str, contents: set[Any]) -> list[Schema]:
    if kind == "object":
        return _objects(contents)
    if kind == "array":
        items = set().union(*contents)
        few: Schema = {"minItems": 1} if all(contents) else {}
        return [{"type": kind, "items": _any_of(items), **few} if items else {"type": kind, "maxItems": 0}]
    if kind == "string" and all(contents):
        return [_TEXT]
    return [_SCALARS[kind]]


def _objects(contents: set[tuple[tuple[str, Form], ...]]) -> list[Schema]:
    sequences: dict[tuple[str, ...], list[dict[str, Form]]] = {}
    for pairs in sorted(contents, key=repr):
        sequences.setdefault(tuple(name for name, _ in pairs), []).append(dict(pairs))
    if len(sequences) > MOST_SEQUENCES:
        return [_ANYTHING["object"]]
    return [
        {
            "type": "object",
            "properties": {name: _any_of({values[name] for values in found}) for name in names},
            "required": list(names),
            "additionalProperties": False,
        }
        for names, found in sequences.items()
    ]


_TEXT: Schema = {"type": "string", "pattern": r"^\S"}
_BOUNDS: Schema = {"minimum": -_LARGEST, "maximum": _LARGEST}  # 1e999 would be infinite
_SCALARS: dict[str, Schema] = {
    "string": {"type": "string"},
    "integer": {"type": "integer", **_BOUNDS},
    "number": {"type": "number", **_BOUNDS},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
}
_ANYTHING: dict[str, Schema] = {
    "object": {"type": "object", "additionalProperties": {"$ref": "#/$defs/within_1"}},
    "array": {"type": "array", "items": {"$ref": "#/$defs/within_1"}},
}


def _definitions() -> Schema:
    """``within_1`` to ``within_5``: any value within so many objects and lists."""
    scalars = [_SCALARS[kind] for kind in ("string", "number", "boolean", "null")]
    found: Schema = {}
    for depth in range(1, DEEPEST + 1):
        inner = {"$ref": f"#/$defs/within_{depth + 1}"}
        nested = [{"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner}]
        found[f"within_{depth}"] = {"anyOf": [*scalars, *(nested if depth < DEEPEST else [])]}
    return found
