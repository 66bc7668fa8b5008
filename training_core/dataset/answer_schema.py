"""The form of the training rows' answers as a JSON schema, which a model's answers can be held to."""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from typing import Any

from training_core.rows.strict_json import Record

Schema = dict[str, Any]
Form = tuple[Any, ...]

DECISION = "decision"
MOST_SEQUENCES = 64  # of keys in one place; an object with more is a map, whose keys mean something
DEEPEST = 5  # objects and lists within each other where anything is allowed

_LARGEST = 10**15
_PLAIN = re.compile(r"(?!-0\.0$)-?\d+\.\d+")  # how a number with bounds is written: not 1e-07, not -0.0


def schema_of_answers(answers: Iterable[Record]) -> Schema:
    """The schema of these answers."""
    kept = list(answers)
    return schema_of(set(map(form_of, kept)), sorted({answer[DECISION] for answer in kept}))


def schema_of(forms: Iterable[Form], decisions: list[str]) -> Schema:
    """The schema of answers of these forms; ``any_object`` where they have too many sequences of keys.

    Keys are in the order of the rows: every sequence of keys that occurs is one alternative, so an optional key is
    there or not as in some row. The decision is one of ``decisions``. Texts are not blank where no row's is, numbers
    are finite where all rows' are below 10^15 and without an exponent.
    """
    kept = set(forms)
    found = _any_of(kept)
    if found == _MAP:
        return any_object(kept)
    for one in found.get("anyOf", [found]):
        one["properties"][DECISION] = {"enum": decisions}
    return found | ({"$defs": _definitions(kept)} if "$ref" in json.dumps(found) else {})


def any_object(forms: Collection[Form] = ()) -> Schema:
    """The schema of any JSON object, with at most ``DEEPEST`` objects and lists within each other, or as many as
    answers of these forms have."""
    return _MAP | {"$defs": _definitions(forms)}


def form_of(value: Any) -> Form:
    """What a value tells about the schema: equal for values that differ in texts, numbers and lengths only.

    For texts it is how much they have besides white space, for numbers whether they are written as bounds allow.
    """
    if isinstance(value, dict):
        return ("object", tuple((name, form_of(part)) for name, part in value.items()))
    if isinstance(value, list):
        return ("array", tuple(sorted(set(map(form_of, value)), key=repr)))
    if isinstance(value, str):
        return ("string", (bool(value.strip()), bool(value) and not value[0].isspace()))
    if isinstance(value, int | float) and not isinstance(value, bool):
        plain = isinstance(value, int) or bool(_PLAIN.fullmatch(json.dumps(value)))
        return ("integer" if isinstance(value, int) else "number", plain and abs(value) < _LARGEST)
    return ("null" if value is None else "boolean", None)


def _any_of(forms: set[Form]) -> Schema:
    ordered = sorted(forms, key=lambda form: form[0])
    kinds = {kind: {content for _, content in same} for kind, same in groupby(ordered, lambda form: form[0])}
    if "number" in kinds:
        kinds["number"] |= kinds.pop("integer", set())
    found = [schema for kind, contents in kinds.items() for schema in _of_kind(kind, contents)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _of_kind(kind: str, contents: set[Any]) -> list[Schema]:
    if kind == "object":
        return _objects(contents)
    if kind == "array":
        items = set().union(*contents)
        few: Schema = {"minItems": 1} if all(contents) else {}
        return [{"type": kind, "items": _any_of(items), **few} if items else {"type": kind, "maxItems": 0}]
    if kind == "string":
        text, unspaced = map(all, zip(*contents, strict=True))
        return [{"type": kind, "pattern": r"^\S" if unspaced else r"\S"} if text else {"type": kind}]
    return [_number(kind, contents) if kind in ("integer", "number") else {"type": kind}]


def _number(kind: str, bounded: Iterable[bool]) -> Schema:
    bounds = {"minimum": -_LARGEST, "maximum": _LARGEST} if all(bounded) else {}  # without them 1e999 is possible
    return {"type": kind, **bounds}


def _objects(contents: set[tuple[tuple[str, Form], ...]]) -> list[Schema]:
    sequences: dict[tuple[str, ...], list[dict[str, Form]]] = {}
    for pairs in sorted(contents, key=repr):
        sequences.setdefault(tuple(name for name, _ in pairs), []).append(dict(pairs))
    if len(sequences) > MOST_SEQUENCES:
        return [_MAP]
    return [
        {
            "type": "object",
            "properties": {name: _any_of({values[name] for values in found}) for name in names},
            "required": list(names),
            "additionalProperties": False,
        }
        for names, found in sequences.items()
    ]


_MAP: Schema = {"type": "object", "additionalProperties": {"$ref": "#/$defs/within_1"}}


def _definitions(forms: Collection[Form]) -> Schema:
    """``within_1`` to ``within_5``, or further: any value within so many objects and lists."""
    deepest = max((DEEPEST, *map(_depth, forms)))
    bounded = {bool(content) for form in forms for kind, content in _forms_in(form) if kind in ("integer", "number")}
    scalars = [{"type": "string"}, _number("number", bounded), {"type": "boolean"}, {"type": "null"}]
    found: Schema = {}
    for depth in range(1, deepest + 1):
        inner = {"$ref": f"#/$defs/within_{depth + 1}"}
        nested = [{"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner}]
        found[f"within_{depth}"] = {"anyOf": [*scalars, *(nested if depth < deepest else [])]}
    return found


def _parts(form: Form) -> list[Form]:
    kind, content = form
    return [part for _, part in content] if kind == "object" else list(content) if kind == "array" else []


def _depth(form: Form) -> int:
    return 1 + max(map(_depth, _parts(form)), default=0) if form[0] in ("object", "array") else 0


def _forms_in(form: Form) -> Iterator[Form]:
    """The form itself, and all forms within it."""
    yield form
    for part in _parts(form):
        yield from _forms_in(part)
