"""A line is a valid row or is rejected with a reason; it never crashes the reader."""

import codecs
import json
import re
from typing import Any

import pytest

from training_core.rows import strict_json
from training_core.rows.formats import detect_format, to_record
from training_core.rows.strict_json import (
    ANSWER_FIELDS,
    MAX_DEPTH,
    BadLineError,
    Problem,
    compose,
    normalise,
    parse_json,
)

RECORD: dict[str, Any] = {
    "instruction": "Decide this case.",
    "input": {"case_id": "A-1", "days": 30, "policy_document": "Returns within 30 days."},
    "output": {"decision": "Eligible", "reason": "Day 30.", "customer_response": "Yes.", "next_action": "Refund"},
}
LINE = json.dumps(RECORD)


NATIVE = detect_format(RECORD)
assert NATIVE


def parse_row(raw: bytes) -> dict[str, Any]:
    return to_record(parse_json(raw), NATIVE)


def rejection(raw: bytes) -> tuple[str, str, str]:
    with pytest.raises(BadLineError) as caught:
        parse_row(raw)
    field, what, fix = caught.value.args
    assert field and what and fix
    return field, what, fix


def with_value(json_text: str) -> bytes:
    """The row with this JSON text for the case's `days`."""
    return LINE.replace('"days": 30', f'"days": {json_text}').encode()


def test_row_is_read_as_written() -> None:
    record = RECORD | {"output": RECORD["output"] | {"confidence": 0.5, "emoji": "🙂 é \u2028 \t\r\n\x85 \ufffe"}}
    assert parse_row(json.dumps(record).encode()) == record
    assert parse_row(json.dumps(record, ensure_ascii=False).encode()) == record


def test_parse_json_composes_accents() -> None:
    record = RECORD | {"output": RECORD["output"] | {"decision": "De\u0301clin", "e\u0301tat": ["a\u0300"]}}
    for text in (json.dumps(record), json.dumps(record, ensure_ascii=False)):
        output = parse_row(text.encode())["output"]
        assert (output["decision"], output["\u00e9tat"]) == ("D\u00e9clin", ["\u00e0"])


def test_normalise_gives_the_form_used_in_training() -> None:
    case = {"instruction": " De\u0301cide \n", "input": {"a": " e\u0301 ", "policy_document": "\n Rule. "}}
    line = json.dumps(case | {"output": RECORD["output"]}).encode()
    assert normalise(case) == {name: value for name, value in parse_row(line).items() if name != "output"}
    assert normalise(case)["input"] == {"a": " \u00e9 ", "policy_document": "Rule."}


def test_compose_rejects_keys_that_become_equal() -> None:
    with pytest.raises(BadLineError, match="got a duplicate"):
        compose({"caf\u00e9": 1, "cafe\u0301": 2})


@pytest.mark.parametrize(
    "ends", [(b"", b"\n"), (b"", b"\r\n"), (b"\xef\xbb\xbf", b"\r\n"), (b" \t", b" \t"), (b"", b"")]
)
def test_line_ends_and_byte_order_mark_are_ignored(ends: tuple[bytes, bytes]) -> None:
    assert parse_row(ends[0] + LINE.encode() + ends[1]) == RECORD


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
@pytest.mark.parametrize("value", [None, 3, [], "", True])
def test_part_of_the_wrong_type_is_named(field: str, value: object) -> None:
    assert rejection(json.dumps(RECORD | {field: value}).encode())[0] == field


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_missing_part_is_named(field: str) -> None:
    record = {name: value for name, value in RECORD.items() if name != field}
    assert rejection(json.dumps(record).encode())[:2] == (
        field,
        "expected a non-empty string, got null or nothing"
        if field == "instruction"
        else "expected an object, got null or nothing",
    )


@pytest.mark.parametrize("path", ["input.policy_document", *(f"output.{field}" for field in ANSWER_FIELDS)])
@pytest.mark.parametrize("value", [None, "", " \n\t\u00a0", 7, ["x"], {"x": "y"}, False])
def test_text_field_of_another_type_or_blank_is_named(path: str, value: object) -> None:
    part, field = path.split(".")
    assert rejection(json.dumps(RECORD | {part: RECORD[part] | {field: value}}).encode())[0] == path


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_number_that_is_not_finite_is_rejected(value: str) -> None:
    """Python reads 1e999 as infinity and would write it as `Infinity`."""
    assert rejection(with_value(value))[0] in ("line", "input.days", "days")


@pytest.mark.parametrize(
    ("line", "is_ambiguous"),
    [
        (b'{"a": 1, "b": {"c": 2}}', False),
        (b'{"a": "the \\"b\\": key"}', False),
        (b'{"a": 1, "a": 2}', True),
        (b'{"id": 12345678901234567890123}', True),
        (b'{"a\\\\": 1, "b": 2, "b": "\\":"}', True),
    ],
)
def test_quick_parser_matches_its_worked_example(line: bytes, is_ambiguous: bool) -> None:
    found = strict_json._parse_quickly(line)
    assert found is strict_json._AMBIGUOUS if is_ambiguous else found == json.loads(line)


@pytest.mark.parametrize("value", ["-0.0", "1e-999", '"\\ud83d\\ude00"', "[[[[]]]]", '{"": 1}', '{"\\\\": 1}'])
def test_unusual_valid_json_is_a_row(value: str) -> None:
    assert parse_row(with_value(value))["input"]["days"] == json.loads(value)


@pytest.mark.parametrize("digits", [*range(17, 27), 100, 4300])
@pytest.mark.parametrize("sign", ["", "-"])
def test_integer_keeps_every_digit(digits: int, sign: str) -> None:
    """Order numbers of 19 digits and more must not become floating point numbers."""
    number = f"{sign}{'1234567890' * (digits // 10)}{'9876543210'[: digits % 10]}"
    assert str(parse_row(with_value(number))["input"]["days"]) == number


def test_number_of_too_many_digits_is_rejected() -> None:
    assert rejection(with_value("9" * 5000))[0] == "line"


@pytest.mark.parametrize("open_close", ["[]", "{}", "{[]}"])
def test_nesting_is_limited_to_max_depth(open_close: str) -> None:
    """The limit does not depend on the recursion limit: 65 levels are rejected like 200,000."""

    def nested(levels: int) -> str:
        dict_first = [open_close != "[]" and (open_close == "{}" or i % 2 == 0) for i in range(levels)]
        opening = "".join('{"k":' if is_dict else "[" for is_dict in dict_first)
        return opening + "0" + "".join("}" if is_dict else "]" for is_dict in reversed(dict_first))

    parse_json(nested(MAX_DEPTH).encode())
    for levels in (MAX_DEPTH + 1, 500, 1023, 1024, 1025, 5_000, 200_000):
        with pytest.raises(BadLineError, match="levels of nesting"):
            parse_json(nested(levels).encode())


@pytest.mark.parametrize("code", [*range(9), 11, 12, *range(14, 32), *range(127, 160)])
def test_control_characters_are_rejected_escaped_or_not(code: int) -> None:
    """All but tab, newline, return and next line (U+0085): terminals interpret the others."""
    for ensure_ascii in (True, False):
        for changed in ({"instruction": f"a{chr(code)}b"}, {"input": RECORD["input"] | {f"k{chr(code)}": 1}}):
            raw = json.dumps(RECORD | changed, ensure_ascii=ensure_ascii).encode()
            if code == 0x85:
                assert parse_row(raw) == RECORD | changed
            else:
                assert f"U+{code:04X}" in rejection(raw)[1]


@pytest.mark.parametrize(
    "text", ["\ta\r\nb", "a\x85b", "\u2028\u2029", "\ufdd0\ufffe\uffff\U0010ffff", "\ufeff", "\u202e"]
)
def test_unusual_characters_that_are_harmless_are_kept(text: str) -> None:
    row = RECORD | {"input": RECORD["input"] | {"note": f"x{text}y"}}
    for ensure_ascii in (True, False):
        assert parse_row(json.dumps(row, ensure_ascii=ensure_ascii).encode()) == row


@pytest.mark.parametrize(
    "text", ['": ', '\\": "', '\\\\": ', '{"a": 1, "a": 2}', '" :', '\\" :\t', "':'", '"":""', '\\\\\\"  :']
)
def test_quotes_and_colons_in_texts_are_not_keys(text: str) -> None:
    for row in (RECORD | {"instruction": f"x{text}y"}, RECORD | {"input": RECORD["input"] | {text: text}}):
        assert parse_row(json.dumps(row).encode()) == row


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace('"days": 30', '"days": 30, "days": 31'),
        LINE.replace('"days": 30', '"days": {"a": 1, "a": 1}'),
        LINE.replace('{"instruction"', '{"instruction": "x", "instruction"'),
        LINE.replace('"days": 30', '"d\\u0061ys": 30, "days": 30'),
        LINE.replace('"days": 30', '"days" : 30, "days"\t:30'),
        LINE.replace('"days": 30', '"days": ["\\": x"], "days": 30'),
        LINE.replace('"days": 30', '"a\\\\": 30, "days": 30, "a\\\\" :31'),
        LINE.replace('"days": 30', '"days": "\\"  :", "days": 30'),
    ],
)
def test_duplicate_key_is_rejected_with_its_name_and_byte(line: str) -> None:
    field, what, _ = rejection(line.encode())
    assert field.rstrip("\\") in ("days", "a", "instruction")
    (place,) = re.findall(r"got a duplicate at byte (\d+)", what)
    again = json.loads(re.match(r'"(?:[^"\\]|\\.)*"', line[int(place) :])[0])  # type: ignore[index]
    assert again.rstrip("\\") == field.rstrip("\\")
    assert line[: int(place)].count("{") >= line[: int(place)].count("}") + 1


@pytest.mark.parametrize(
    "line",
    [
        LINE.replace("Day 30.", "\\ud800"),
        LINE.replace("Day 30.", "\\ude00\\ud83d"),
        LINE.replace('"days"', '"\\udfff"'),
    ],
)
def test_lone_surrogate_is_rejected(line: str) -> None:
    assert "surrogate" in rejection(line.encode())[1]


@pytest.mark.parametrize(
    "bad", ["NaN", "-Infinity", '"é \\u0007"', '"\\\\\\u0007"', '"\x7f"', '"\x86"', '"\\b"', '"\\ud800"', "01"]
)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "byte order mark"])
def test_problem_inside_a_line_has_its_byte(bad: str, mark: bytes) -> None:
    raw = mark + with_value(bad)
    start = raw.index(b'"days": ') + len(b'"days": ')
    (place,) = re.findall(r"at byte (\d+)", rejection(raw)[1])
    assert start <= int(place) < start + len(bad.encode()) + 1


@pytest.mark.parametrize("key", ["\\ud800", "a\\nb", "x" * 10_000], ids=["surrogate", "newline", "long"])
def test_problem_is_printable_on_one_line(key: str) -> None:
    line = LINE.replace('"days": 30', f'"{key}": 1, "{key}": 2')
    text = str(Problem("rows.jsonl", 1, *rejection(line.encode())))
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
def test_other_bytes_are_rejected(raw: bytes) -> None:
    rejection(raw)


def test_problem_reads_file_line_field_what_fix() -> None:
    assert str(Problem("rows.jsonl", 7, "output", "expected an object, got 5", "write one")) == (
        "rows.jsonl:7: output: expected an object, got 5; write one"
    )
