"""Malformed files as they occur in practice: how many rows, how many rejected lines, and the reason.

Every class is a file of three good rows with a defect. The columns: name, bytes of the file, rows read, lines
rejected, and words of the first problem, or of the error if the file cannot be read completely.
"""

import codecs
import gzip
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_samples import Record, record, records, to_line, write

from samples.row_formats import FORMATS, gzipped, json_array, jsonl, parquet, zstandard
from training_core.rows.files import BadFileError
from training_core.rows.reader import Rejected, Row, read_rows

ROWS = records(3)
LINES = [to_line(row) for row in ROWS]
GOOD = jsonl(LINES)
ONE, TWO, THREE = LINES
PRETTY = json.dumps(ROWS[0], indent=2).encode()


def instead(old: str | bytes, new: str | bytes) -> bytes:
    """Good lines, with a replacement in the second."""
    old, new = (text.encode() if isinstance(text, str) else text for text in (old, new))
    assert old in TWO
    return jsonl([ONE, TWO.replace(old, new), THREE])


def changed(**fields: Any) -> bytes:
    """Good lines, with a field of the second changed: ``output__reason=None``, or ``...`` to remove it."""
    row = json.loads(TWO)
    for path, value in fields.items():
        *parents, name = path.split("__")
        place = row
        for parent in parents:
            place = place[parent]
        place[name] = value
        if value is ...:
            del place[name]
    return jsonl([ONE, to_line(row), THREE])


def renamed(parent: str | None, old: str, new: str) -> bytes:
    """One line, with another name for a key."""
    row = json.loads(ONE)
    place = row[parent] if parent else row
    place[new] = place.pop(old)
    return jsonl([to_line(row)])


def chat(*turns: tuple[str, Any]) -> bytes:
    """Two good conversations and a third with these turns."""
    return jsonl([*CHATS, to_line({"messages": [{"role": role, "content": content} for role, content in turns]})])


CHATS = [to_line(FORMATS["messages"](row)) for row in ROWS[:2]]


def odd_turn(more: Record) -> bytes:
    """Two good conversations and a third with these keys in its answer's turn."""
    messages = FORMATS["messages"](ROWS[2])["messages"]
    return jsonl([*CHATS, to_line({"messages": [*messages[:-1], messages[-1] | more]})])


ANSWER = json.dumps(ROWS[0]["output"])
CASE = json.dumps(ROWS[0]["input"])

Class = tuple[str, bytes, int, int, str]

ENCODINGS: list[Class] = [
    ("UTF-8 with byte order mark", codecs.BOM_UTF8 + GOOD, 3, 0, ""),
    ("a byte order mark at every line", jsonl([codecs.BOM_UTF8 + line for line in LINES]), 3, 0, ""),
    ("two byte order marks", codecs.BOM_UTF8 * 2 + GOOD, 2, 1, "invalid JSON"),
    ("UTF-16 LE with mark", GOOD.decode().encode("utf-16"), 0, 4, "UTF-16"),
    ("UTF-16 BE with mark", codecs.BOM_UTF16_BE + GOOD.decode().encode("utf-16-be"), 0, 3, "UTF-16"),
    ("UTF-16 LE without mark", GOOD.decode().encode("utf-16-le"), 0, 4, "got UTF-16"),
    ("UTF-16 BE without mark", GOOD.decode().encode("utf-16-be"), 0, 3, "got UTF-16"),
    ("UTF-32 with mark", GOOD.decode().encode("utf-32"), 0, 4, "got UTF-16"),
    ("UTF-32 BE without mark", GOOD.decode().encode("utf-32-be"), 0, 3, "got UTF-16"),
    ("cp1252 in one line", instead("Yes.", "Yes – café.".encode("cp1252")), 2, 1, "expected UTF-8"),
    ("overlong UTF-8", instead("Yes.", b"\xc0\xaf"), 2, 1, "expected UTF-8"),
    ("UTF-8 cut in a letter", instead("Yes.", "é".encode()[:1]), 2, 1, "expected UTF-8"),
    ("above U+10FFFF", instead("Yes.", b"\xf4\x90\x80\x80"), 2, 1, "expected UTF-8"),
    ("a lone surrogate in bytes", instead("Yes.", b"\xed\xa0\x80"), 2, 1, "expected UTF-8"),
    ("a lone surrogate escaped", instead("Yes.", "\\ud800"), 2, 1, "surrogate"),
    ("surrogates in the wrong order", instead("Yes.", "\\ude00\\ud83d"), 2, 1, "surrogate"),
    ("surrogates in the right order", instead("Yes.", "\\ud83d\\ude00"), 3, 0, ""),
    ("NUL in a text", instead("Yes.", b"a\x00b"), 2, 1, "invalid JSON"),
    ("NUL escaped", instead("Yes.", "a\\u0000b"), 2, 1, "control character U+0000"),
    ("a file of NULs", b"\x00" * 4096, 0, 1, "bytes of zero"),
    ("NULs at the end, as after a power failure", GOOD + b"\x00" * 512, 3, 1, "bytes of zero"),
    ("terminal colours", instead("Yes.", "\\u001b[31mYes."), 2, 1, "U+001B"),
    ("delete, unescaped", instead("Yes.", b"\x7f"), 2, 1, "U+007F"),
    ("C1 control, unescaped", instead("Yes.", "\x9b"), 2, 1, "U+009B"),
    ("noncharacters", instead("Yes.", "\ufffe\uffff\ufdd0"), 3, 0, ""),
    ("the replacement character", instead("Yes.", "caf\ufffd"), 3, 0, ""),
    ("accents apart", instead("Yes.", "cafe\u0301"), 3, 0, ""),
    ("right-to-left and zero-width", instead("Yes.", "\u202e\u200b\u2066\ufeff"), 3, 0, ""),
]
LINES_AND_ENDS: list[Class] = [
    ("nothing", b"", 0, 0, ""),
    ("only newlines", b"\n\n\r\n", 0, 0, ""),
    ("CRLF", GOOD.replace(b"\n", b"\r\n"), 3, 0, ""),
    ("lone CR", GOOD.replace(b"\n", b"\r"), 0, 1, "carriage return"),
    ("no newline at the end", GOOD[:-1], 3, 0, ""),
    ("blank lines", b"\n \t\n".join(LINES), 3, 0, ""),
    ("a line of no-break spaces", jsonl([ONE, "\u00a0".encode(), TWO, THREE]), 3, 1, "invalid JSON"),
    ("a line of form feeds", jsonl([ONE, b"\x0c", TWO, THREE]), 3, 1, "invalid JSON"),
    ("U+2028, U+2029, U+0085 in texts", instead("Yes.", "a\u2028b\u2029c\x85d"), 3, 0, ""),
    ("cut off in the last line", GOOD[:-40], 2, 1, "invalid JSON"),
    ("begun in the middle", GOOD[40:], 2, 1, "invalid JSON"),
    ("pretty-printed", PRETTY, 0, PRETTY.count(b"\n") + 1, "one complete JSON object per line"),
    (
        "two rows on a line",
        ONE + TWO + b"\n" + THREE,
        1,
        1,
        "Extra data; write one complete JSON object per line, and nothing after it",
    ),
    ("rows with commas behind", b",\n".join(LINES), 1, 2, "and nothing after it"),
    ("a comment", b"// rows\n" + GOOD, 3, 1, "invalid JSON"),
    ("CSV", b"instruction,input,output\na,b,c\n", 0, 2, "invalid JSON"),
    ("single quotes", ONE.replace(b'"', b"'"), 0, 1, "invalid JSON"),
    ("a trailing comma", instead("}}", "},}"), 2, 1, "invalid JSON"),
    (
        "a merge conflict",
        jsonl([b"<<<<<<< HEAD", ONE, b"=======", TWO, b">>>>>>> theirs", THREE]),
        3,
        3,
        "invalid JSON",
    ),
]
ARRAYS: list[Class] = [
    ("an array", json_array(LINES), 3, 0, ""),
    ("an array on one line", b"[" + b",".join(LINES) + b"]", 3, 0, ""),
    ("an array, pretty-printed", json.dumps(ROWS, indent=4).encode(), 3, 0, ""),
    ("an array with byte order mark and CRLF", codecs.BOM_UTF8 + json_array(LINES).replace(b"\n", b"\r\n"), 3, 0, ""),
    ("an empty array", b"[]", 0, 0, ""),
    ("an array cut off", json_array(LINES)[:-60], 2, 1, "invalid JSON"),
    ("a row never closed in an array", json_array([ONE, TWO[:-1], THREE]), 1, 1, "invalid JSON"),
    ("an array without end", b"[" + b",".join(LINES), 3, 0, ""),
    ("an array without commas", b"[" + b"\n".join(LINES) + b"]", 0, 1, "Extra data"),
    ("rubbish behind an array", json_array(LINES) + b"rubbish", 3, 1, "invalid JSON"),
    ("rubbish in an array", json_array([ONE, b"rubbish", TWO, THREE]), 3, 1, "invalid JSON"),
    ("a text without end in an array", json_array([ONE, TWO.replace(b'Yes."', b"Yes."), THREE]), 1, 1, "invalid JSON"),
    ("an array in an array", b"[" + b"[" + b",".join(LINES) + b"]]", 0, 1, "expected an object, got a list"),
    ("an array of numbers", b"[1, 2, 3]", 0, 1, "expected an object, got a list"),
    ("rows and other things in an array", json_array([ONE, b"3", b"null", b'"x"', TWO]), 2, 3, "expected an object"),
    (
        "an array under a key",
        b'{"data": ' + json_array(LINES).replace(b"\n", b"") + b"}",
        0,
        1,
        "write what is in 'data' without",
    ),
    ("brackets and quotes in texts", json_array([TWO.replace(b"Yes.", b'}],[{\\"')]), 1, 0, ""),
]
JSON_LEVEL: list[Class] = [
    ("a key twice", instead('"case_id"', '"case_id": 1, "case_id"'), 2, 1, "a duplicate"),
    ("a key twice, once escaped", instead('"case_id"', '"c\\u0061se_id": 1, "case_id"'), 2, 1, "a duplicate"),
    (
        "a key twice but for its accents",
        instead('"case_id"', '"é": 1, "e\u0301": 2, "case_id"'),
        2,
        1,
        "a duplicate",
    ),
    ("a decision twice", instead('"decision"', '"decision": "No", "decision"'), 2, 1, "a duplicate"),
    ("a key twice, blanks before a colon", instead('"case_id"', '"case_id" : 1, "case_id"'), 2, 1, "a duplicate"),
    ("keys that end in backslashes", instead('"case_id"', '"a\\\\": 1, "b\\\\\\\\" : 2, "case_id"'), 3, 0, ""),
    ("quotes and colons in texts", instead("Yes.", 'He said \\"yes\\": \\"a\\" : b'), 3, 0, ""),
    ("NaN", instead('"A-1"', "NaN"), 2, 1, "NaN"),
    ("-Infinity", instead('"A-1"', "-Infinity"), 2, 1, "Infinity"),
    ("1e999", instead('"A-1"', "1e999"), 2, 1, "expected finite numbers"),
    ("5,000 digits", instead('"A-1"', "9" * 5000), 2, 1, "smaller number"),
    ("25 digits", instead('"A-1"', "9" * 25), 3, 0, ""),
    ("a leading zero", instead('"A-1"', "007"), 2, 1, "invalid JSON"),
    ("a plus sign", instead('"A-1"', "+7"), 2, 1, "invalid JSON"),
    ("Python's None and True", instead('"A-1"', "None"), 2, 1, "invalid JSON"),
    ("100 levels of lists", instead('"A-1"', "[" * 100 + "]" * 100), 2, 1, "levels of nesting"),
    ("100,000 levels of objects", instead('"A-1"', '{"a":' * 100_000 + "1" + "}" * 100_000), 2, 1, "levels of nesting"),
    ("60 levels", instead('"A-1"', "[" * 60 + "]" * 60), 3, 0, ""),
    ("a tab in a text, unescaped", instead("Yes.", "a\tb"), 2, 1, "invalid JSON"),
]
SCHEMA: list[Class] = [
    *(
        (f"{field} {name}", changed(**{field.replace(".", "__"): value}), 2, 1, field)
        for field in ("instruction", "input.policy_document", "output.decision", "output.next_action")
        for name, value in {"lost": ..., "null": None, "a number": 7, "empty": "", "blank": " \n\u00a0"}.items()
    ),
    *(
        (f"{field} {name}", changed(**{field: value}), 2, 1, field)
        for field in ("input", "output")
        for name, value in {"lost": ..., "null": None, "a list": [], "a text": "x", "empty": {}}.items()
    ),
    ("keys in capitals", jsonl([to_line({key.upper(): value for key, value in ROWS[0].items()})]), 0, 1, "INSTRUCTION"),
    ("keys with capitals", renamed("output", "decision", "Decision"), 0, 1, "or rename 'Decision' if it is meant"),
    ("a key with a space", renamed("output", "reason", "reason "), 0, 1, "or rename 'reason ' if it is meant"),
    ("a key with a zero-width space", renamed("output", "reason", "reason\u200b"), 0, 1, "or rename 'reason\\u200b'"),
    ("a key in camel case", renamed("output", "next_action", "nextAction"), 0, 1, "or rename 'nextAction'"),
    ("a shorter key", renamed("output", "customer_response", "response"), 0, 1, "or rename 'response' if"),
    ("the policy under another key", renamed("input", "policy_document", "policy"), 0, 1, "or rename 'policy' if"),
    ("an instruction with a colon", renamed(None, "instruction", "Instruction:"), 0, 1, "or rename 'Instruction:'"),
    (
        "no key that is like it",
        renamed("output", "reason", "zzz"),
        0,
        1,
        "got null or nothing; write a non-empty string",
    ),
    ("an output as text", changed(output=json.dumps(ROWS[1]["output"])), 2, 1, "write the object itself, not its text"),
    ("an input as text", changed(input=json.dumps(ROWS[1]["input"])), 2, 1, "write the object itself, not its text"),
    ("a line as text", jsonl([json.dumps(ONE.decode()).encode()]), 0, 1, "write the object itself, not its text"),
    ("a row in an object", jsonl([b'{"row": %s}' % ONE]), 0, 1, "write what is in 'row' without the object around it"),
    ("keys in small letters wanted", jsonl([ONE.title()]), 0, 1, "write the keys instruction, input and output"),
    ("unknown keys", jsonl([to_line(record(id=1, meta={"a": [1]}))]), 1, 0, ""),
    ("no object at all", jsonl([b"3", b"null", b'"x"', b"true", b"[]", ONE]), 1, 5, "expected an object"),
]
CONVERSATIONS: list[Class] = [
    ("the role tool", chat(("user", CASE), ("tool", "x"), ("assistant", ANSWER)), 2, 1, "got 'tool'"),
    ("the role Assistant", chat(("user", CASE), ("Assistant", ANSWER)), 2, 1, "got 'Assistant'"),
    ("no answer", chat(("system", "x"), ("user", CASE)), 2, 1, "in turn"),
    (
        "two answers",
        chat(("user", CASE), ("assistant", ANSWER), ("assistant", ANSWER)),
        2,
        1,
        "in turn",
    ),
    (
        "the system last",
        chat(("user", CASE), ("assistant", ANSWER), ("system", "x")),
        2,
        1,
        "in turn",
    ),
    ("an empty turn", chat(("user", CASE), ("assistant", "")), 2, 1, "non-empty string"),
    (
        "parts for content",
        chat(("user", [{"type": "text"}]), ("assistant", ANSWER)),
        2,
        1,
        "parts without text",
    ),
    ("no turns", chat(), 2, 1, "got 0 messages"),
    (
        "free text among cases",
        chat(("user", "May I?"), ("assistant", ANSWER)),
        2,
        1,
        "ends in a case",
    ),
    (
        "an answer in plain words",
        chat(("user", CASE), ("assistant", "Eligible")),
        2,
        1,
        "write the whole answer as one",
    ),
    ("an answer after a word", chat(("user", CASE), ("assistant", f"Sure: {ANSWER}")), 2, 1, "and no other text"),
    (
        "a cut case",
        chat(("user", CASE[:-2] + ",}"), ("assistant", ANSWER)),
        2,
        1,
        "end the text with the case as one JSON object",
    ),
    (
        "an image among parts",
        chat(("user", [{"type": "text", "text": CASE}, {"type": "image_url"}]), ("assistant", ANSWER)),
        2,
        1,
        "got 'image_url'",
    ),
    (
        "parts of an odd type",
        chat(("user", [{"type": {}}, {"type": []}]), ("assistant", ANSWER)),
        2,
        1,
        "got an object",
    ),
    ("an answer without fields", chat(("user", CASE), ("assistant", '{"answer": "yes"}')), 2, 1, "whole answer as one"),
    (
        "an answer as an object",
        chat(("user", CASE), ("assistant", {"decision": "x"})),
        2,
        1,
        "write the object as JSON",
    ),
    ("a chat under another key", jsonl([CHATS[0].replace(b"messages", b"chat")]), 0, 1, "write 'chat' as messages: ["),
    ("messages as text", jsonl([b'{"messages": "hi"}']), 0, 1, "write 'messages' as messages: ["),
    ("messages as an object", jsonl([b'{"messages": {"role": "user"}}']), 0, 1, "write 'messages' as messages: ["),
    ("two roles of a turn", odd_turn({"from": "gpt"}), 2, 1, "expected role or from"),
    ("two contents of a turn", odd_turn({"value": "other"}), 2, 1, "expected content or value"),
    ("a tool call", odd_turn({"tool_calls": [{"id": "1"}]}), 2, 1, "expected text only, got tool_calls"),
    ("an answer of weight 0", odd_turn({"weight": 0}), 2, 1, "weight 0"),
    *(
        (f"a conversation with {key}", jsonl([*CHATS, to_line(json.loads(CHATS[0]) | {key: value})]), 2, 1, key)
        for key, value in {
            **{"system": "Be strict.", "history": [["a", "b"]], "tools": [{"name": "x"}]},
            **{"functions": [{"name": "x"}], "documents": [{"text": "x"}]},
        }.items()
    ),
    (
        "an answer in a list",
        chat(("system", "x"), ("user", CASE), ("assistant", f"[{ANSWER}]")),
        2,
        1,
        "expected an object",
    ),
    (
        "a decision twice",
        chat(("user", CASE), ("assistant", ANSWER.replace("{", '{"reason": "x",'))),
        2,
        1,
        "a duplicate",
    ),
    ("an answer in a code fence", chat(("user", CASE), ("assistant", f"```\n{ANSWER}\n```")), 2, 1, "invalid JSON"),
    (
        "deep nesting in a turn",
        chat(("user", CASE.replace('"A-0"', "[" * 99 + "]" * 99)), ("assistant", ANSWER)),
        2,
        1,
        "levels of nesting",
    ),
    ("deep nesting for content", chat(("user", json.loads("[" * 99 + "]" * 99))), 2, 1, "levels of nesting"),
    (
        "native among conversations",
        chat(("system", "x"), ("user", CASE), ("assistant", ANSWER)) + ONE,
        3,
        1,
        "as in earlier rows",
    ),
    ("prompt a text, completion a list", jsonl([to_line({"prompt": "x", "completion": []})]), 0, 1, "known row format"),
]


EQUAL_KEYS = pa.array([[("a", "1"), ("a", "2")]], pa.map_(pa.string(), pa.string()))
LATE = pa.array([2**53], pa.timestamp("s"))


def parquet_of_one(name: str, column: pa.Array) -> bytes:
    """One column of one value."""
    file = BytesIO()
    pq.write_table(pa.table({name: column}), file)
    return file.getvalue()


def parquet_of(**columns: list[Any]) -> bytes:
    """Good rows with more columns; one whose name they have already is added if its values are objects."""
    table, file = pa.Table.from_pylist(ROWS), BytesIO()
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        same = place >= 0 and not isinstance(values[0], dict)
        table = table.set_column(place, name, [values]) if same else table.append_column(name, [values])
    pq.write_table(table, file)
    return file.getvalue()


ODD_TABLE = [json.loads(line) for line in LINES]
CONTAINERS: list[Class] = [
    ("gzip", gzipped(LINES), 3, 0, ""),
    ("gzip in parts", b"".join(gzip.compress(line + b"\n") for line in LINES), 3, 0, ""),
    ("gzip of nothing", gzip.compress(b""), 0, 0, ""),
    ("gzip of an array", gzip.compress(json_array(LINES)), 3, 0, ""),
    ("gzip in gzip", gzip.compress(gzipped(LINES)), 0, gzipped(LINES).count(b"\n") + 1, "expected UTF-8"),
    ("gzip cut off", gzipped(LINES)[:-5], 3, 0, "Truncated"),
    ("gzip with a flipped bit", gzipped(LINES)[:60] + b"\xff\xff" + gzipped(LINES)[62:], 0, 0, "inflate"),
    ("two bytes of gzip", b"\x1f\x8b", 0, 0, "Truncated"),
    ("zstd", zstandard(LINES), 3, 0, ""),
    ("zstd in parts", b"".join(zstandard([line]) for line in LINES), 3, 0, ""),
    ("zstd cut off", zstandard(LINES)[:-5], 0, 0, "Truncated"),
    ("a zip archive", b"PK\x03\x04\x14\x00\x08\x00" + bytes(range(128, 200)), 0, 0, "got a ZIP archive; unpack it"),
    ("Parquet", parquet(LINES), 3, 0, ""),
    ("Parquet cut off", parquet(LINES)[:-9], 0, 0, "again"),
    ("Parquet's first bytes alone", b"PAR1", 0, 0, "again"),
    ("Parquet with a null for an answer", parquet([ONE, to_line(json.loads(TWO) | {"output": None})]), 1, 1, "output"),
    ("Parquet with bytes nobody reads", parquet_of(vector=[b"\xff"] * 3, score=[float("nan")] * 3), 3, 0, ""),
    ("Parquet with bytes that are read", parquet_of(instruction=[b"\xff"] * 3), 0, 0, "expected text"),
    ("Parquet with a column twice", parquet_of(output=ROWS), 0, 0, "got 'output' 2 times"),
    ("Parquet with a key twice in a map", parquet_of_one("input", EQUAL_KEYS), 0, 0, "rows 1 to 1: "),
    ("Parquet with a year that no date has", parquet_of_one("prompt", LATE), 0, 0, "convert the column to text"),
    ("Parquet of other things", parquet([b'{"a": 1}']), 0, 1, "known row format"),
    ("Parquet of texts", parquet([to_line(FORMATS["alpaca"](row)) for row in ROWS]), 3, 0, ""),
]
ALL = [*ENCODINGS, *LINES_AND_ENDS, *ARRAYS, *JSON_LEVEL, *SCHEMA, *CONVERSATIONS, *CONTAINERS]


@pytest.mark.parametrize(("content", "rows", "rejected", "words"), [case[1:] for case in ALL], ids=[c[0] for c in ALL])
def test_malformed_file_gives_rows_and_reasons(
    tmp_path: Path, content: bytes, rows: int, rejected: int, words: str
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    items: list[Row | Rejected] = []
    file_error = ""
    try:
        items.extend(read_rows(str(path)))
    except BadFileError as error:
        file_error = str(error)
    problems = [item.problem for item in items if isinstance(item, Rejected) and item.problem]
    if not file_error:
        assert (len(items) - len(problems), len(problems)) == (rows, rejected)
    assert words in str(problems[0] if problems else file_error)
    assert bool(words) <= bool(problems or file_error)
    for problem in problems:
        assert problem.fix
        assert len(str(problem)) < 500
        assert str(problem).isprintable()


def test_malformed_files_are_more_than_120_classes() -> None:
    assert len({name for name, *_ in ALL}) > 120


def test_files_of_different_formats_are_read_independently(tmp_path: Path) -> None:
    """The format is detected for each file."""
    for place, (row_format, write_as) in enumerate(FORMATS.items()):
        write(tmp_path / f"{place}_{row_format}.jsonl", [b"rubbish", *(write_as(row) for row in ROWS)])
        items = list(read_rows(str(tmp_path / f"{place}_{row_format}.jsonl")))
        assert [isinstance(item, Row) for item in items] == [False, True, True, True]
        assert [item.record for item in items if isinstance(item, Row)] == ROWS


def test_records_of_a_good_file_agree_with_pyarrow(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", ROWS)
    table = pa.Table.from_pylist(
        [item.record for item in read_rows(str(tmp_path / "rows.jsonl")) if isinstance(item, Row)]
    )
    assert table.to_pylist() == ROWS
