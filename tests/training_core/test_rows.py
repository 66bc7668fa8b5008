"""A line is a row or a named problem, never a crash and never half understood."""

import json
from typing import Any

import pytest

from training_core.rows import ANSWER_FIELDS, BadLineError, Problem, parse_row

RECORD: dict[str, Any] = {
    "instruction": "Decide this case.",
    "input": {"case_id": "A-1", "days": 30, "policy_document": "Returns within 30 days."},
    "output": {"decision": "Eligible", "reason": "Day 30.", "customer_response": "Yes.", "next_action": "Refund"},
}
LINE = json.dumps(RECORD)


def refusal(raw: bytes) -> tuple[str, str, str]:
    with pytest.raises(BadLineError) as caught:
        parse_row(raw)
    field, what, remedy = caught.value.args
    assert field and what and remedy
    return field, what, remedy


def with_value(json_text: str) -> bytes:
    """The row with this JSON text for the case's `days`."""
    return LINE.replace('"days": 30', f'"days": {json_text}').encode()


def test_a_row_comes_back_as_it_was_written() -> None:
    record = RECORD | {"id": 7, "output": RECORD["output"] | {"confidence": 0.5, "emoji": "🙂 é \u2028\x00"}}
    assert parse_row(json.dumps(record).encode()) == record
    assert parse_row(json.dumps(record, ensure_ascii=False).encode()) == record


def test_accents_are_composed_as_the_tokenizers_compose_them() -> None:
    record = RECORD | {"output": RECORD["output"] | {"decision": "De\u0301clin"}}
    assert parse_row(json.dumps(record).encode())["output"]["decision"] == "D\u00e9clin"


@pytest.mark.parametrize(
    "ends", [(b"", b"\n"), (b"", b"\r\n"), (b"\xef\xbb\xbf", b"\r\n"), (b" \t", b" \t"), (b"", b"")]
)
def test_line_ends_and_a_byte_order_mark_are_no_part_of_a_row(ends: tuple[bytes, bytes]) -> None:
    assert parse_row(ends[0] + LINE.encode() + ends[1]) == RECORD


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
@pytest.mark.parametrize("value", [None, 3, [], "", True])
def test_a_part_of_the_wrong_kind_is_named(field: str, value: object) -> None:
    assert refusal(json.dumps(RECORD | {field: value}).encode())[0] == field


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_a_missing_part_is_named(field: str) -> None:
    record = {name: value for name, value in RECORD.items() if name != field}
    assert refusal(json.dumps(record).encode())[:2] == (
        field,
        "missing or null is no text" if field == "instruction" else "missing or null is no object",
    )


@pytest.mark.parametrize("path", ["input.policy_document", *(f"output.{field}" for field in ANSWER_FIELDS)])
@pytest.mark.parametrize("value", [None, "", " \n\t\u00a0", 7, ["x"], {"x": "y"}, False])
def test_a_text_that_is_no_text_is_named(path: str, value: object) -> None:
    part, field = path.split(".")
    assert refusal(json.dumps(RECORD | {part: RECORD[part] | {field: value}}).encode())[0] == path


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_json_cannot_say_is_refused(value: str) -> None:
    """1e999 is read as infinity, and would be taught as `Infinity`."""
    assert refusal(with_value(value))[0] in ("line", "input.days", "days")


@pytest.mark.parametrize(
    "value", ["1" * 4300, "-0.0", "1e-999", '"\\ud83d\\ude00"', '"\\u0000"', "[[[[]]]]", '{"": 1}']
)
def test_odd_but_proper_json_is_a_row(value: str) -> None:
    assert parse_row(with_value(value))["input"]["days"] == json.loads(value)


def test_a_huge_number_is_a_problem_and_no_crash() -> None:
    assert refusal(with_value("9" * 5000))[0] == "line"


@pytest.mark.parametrize("depth", [900, *range(960, 1010), 100_000])
@pytest.mark.parametrize("place", ['"days": 30', '"Decide this case."'], ids=["case", "instruction"])
def test_deep_nesting_is_a_row_or_a_problem_and_no_crash(depth: int, place: str) -> None:
    deep = "[" * depth + "]" * depth
    line = LINE.replace(place, place.replace("30", deep) if "30" in place else deep).encode()
    try:
        parse_row(line)
    except BadLineError as problem:
        assert len(str(problem.args[1])) < 200


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace('"days": 30', '"days": 30, "days": 31'),
        LINE.replace('"days": 30', '"days": {"a": 1, "a": 1}'),
        LINE.replace('{"instruction"', '{"instruction": "x", "instruction"'),
        LINE.replace('"days": 30', '"d\\u0061ys": 30, "days": 30'),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_name(line: str) -> None:
    field, what, _ = refusal(line.encode())
    assert field in ("days", "a", "instruction")
    assert "twice" in what


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace("Day 30.", "\\ud800"),
        LINE.replace("Day 30.", "\\ude00\\ud83d"),
        LINE.replace('"days"', '"\\udfff"'),
    ],
)
def test_a_lone_surrogate_is_refused(line: str) -> None:
    assert "surrogate" in refusal(line.encode())[1]


@pytest.mark.parametrize("key", ["\\ud800", "a\\nb", "x" * 10_000], ids=["surrogate", "newline", "long"])
def test_a_problem_can_be_printed_on_one_line_whatever_the_key(key: str) -> None:
    line = LINE.replace('"days": 30', f'"{key}": 1, "{key}": 2')
    text = str(Problem("rows.jsonl", 1, *refusal(line.encode())))
    assert text.encode("utf-8").count(b"\n") == 0
    assert len(text) < 500


@pytest.mark.parametrize(
    "raw",
    [
        LINE.encode()[:-1],
        LINE.encode() + b"x",
        LINE.encode() + LINE.encode(),
        LINE.encode() + b"\r" + LINE.encode(),
        b"[" + LINE.encode() + b"]",
        LINE.replace('"', "'").encode(),
        LINE.encode("utf-16"),
        LINE.encode("utf-16-le"),
        b"\xff" + LINE.encode(),
        LINE.encode().replace(b"Yes", b"\xed\xa0\x80"),
        LINE.encode().replace(b"Yes", b"\xc0\xaf"),
        LINE.encode().replace(b"Yes", b"a\x00b"),
        LINE.encode().replace(b"Yes", b"a\tb"),
        b"\x00" * 20,
        b"null",
        b"3",
        b'"text"',
        b"{}",
        b"",
    ],
    ids=range(19),
)
def test_anything_else_is_a_problem(raw: bytes) -> None:
    refusal(raw)


def test_a_problem_says_where_what_and_how_to_mend_it() -> None:
    assert str(Problem("rows.jsonl", 7, "output", "missing or null is no object", "write one")) == (
        "rows.jsonl:7: output: missing or null is no object; write one"
    )
