"""Cases are read by the rules of rows to train on; their answers do not matter, and memory is bounded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from row_samples import record, records, to_line, write

from samples.bad_lines import CORRUPTIONS
from samples.cases import generate_rows
from samples.row_formats import CONTAINERS, FORMATS
from training_core.prediction import cases
from training_core.prediction.cases import Case, Cases, find_cases
from training_core.rows.reader import Rejected, Row, read_rows
from training_core.rows.strict_json import DataError, Record

ANSWER_KEYS = ("output", "completion")


def unanswered(row: Record) -> Record:
    """A row of any format without its answer."""
    kept = {key: value for key, value in row.items() if key not in ANSWER_KEYS}
    return kept | {key: kept[key][:-1] for key in ("messages", "conversations") if key in kept}


def broken(row: Record) -> Record:
    """A row of any format with an answer that could not be trained on."""
    changed = row | {key: row[key][:1] if isinstance(row[key], str) else {} for key in ANSWER_KEYS if key in row}
    last = {"role": "assistant", "content": "I do not know."}
    return changed | {key: [*row[key][:-1], last] for key in ("messages", "conversations") if key in row}


def read(found: Cases) -> list[Case]:
    return [case for window in found.windows() for case in window]


def question(row: Record) -> Record:
    return {key: value for key, value in row.items() if key != "output"}


@pytest.mark.parametrize("change", [dict, unanswered, broken])
@pytest.mark.parametrize("row_format", FORMATS)
def test_answers_of_cases_do_not_matter(row_format: str, change: Callable[[Record], Record], tmp_path: Path) -> None:
    rows = list(generate_rows(5, seed=3))
    written = [FORMATS[row_format](row) for row in rows]
    trained_on = [row for row in read_rows(write(tmp_path / "a.jsonl", written)) if isinstance(row, Row)]
    found = read(find_cases(write(tmp_path / "b.jsonl", [change(row) for row in written])))
    assert [case.record for case in found] == [question(row.record) for row in trained_on]
    assert [case.error for case in found] == [None] * len(rows)


@pytest.mark.parametrize("ending", CONTAINERS)
def test_cases_are_read_from_every_container(ending: str, tmp_path: Path) -> None:
    rows = [question(row) for row in records(3)]
    (tmp_path / f"rows{ending}").write_bytes(CONTAINERS[ending](list(map(to_line, rows))))
    assert [case.record for case in read(find_cases(str(tmp_path)))] == rows


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_bad_cases_have_the_words_of_training(kind: str, tmp_path: Path) -> None:
    """Lines that training rejects for their question are rejected here, and the others are asked."""
    row = next(iter(generate_rows(1, seed=2)))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(to_line(row) + b"\n" + CORRUPTIONS[kind](row))
    rejected = [item.problem for item in read_rows(str(path)) if isinstance(item, Rejected) and item.problem]
    found = [case for case in read(find_cases(str(path))) if case.error]
    of_question = [problem for problem in rejected if not problem.field.startswith("output")]
    assert [(case.line, case.error) for case in found] == [
        (p.line, f"{p.field}: {p.what}; {p.fix}") for p in of_question
    ]


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (record() | {"input": None}, "input"),
        ({"instruction": "x"}, "input"),
        ({"instruction": "x", "input": {"a": 1}}, "input.policy_document"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"question": "x"}, "line"),
        (5, "line"),
    ],
)
def test_bad_first_case_does_not_spoil_the_file(row: Any, place: str, tmp_path: Path) -> None:
    found = read(find_cases(write(tmp_path / "rows.jsonl", [json.dumps(row).encode(), question(record())])))
    assert found[0].record is None and str(found[0].error).startswith(f"{place}: expected ")
    assert found[1].error is None


def test_alpaca_cases_without_input_are_read_after_the_first(tmp_path: Path) -> None:
    rows = [{"instruction": "Hello.", "input": ""}, {"instruction": "Good morning."}]
    found = read(find_cases(write(tmp_path / "rows.jsonl", rows)))
    assert [case.record and case.record["messages"][0]["content"] for case in found] == ["Hello.", "Good morning."]


def test_windows_are_bounded_in_lines_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", records(10))
    found = find_cases(path)
    monkeypatch.setattr(cases, "_WINDOW_LINES", 4)
    assert list(map(len, found.windows())) == [4, 4, 2]
    monkeypatch.setattr(cases, "_WINDOW_BYTES", 2 * len(to_line(record())))
    assert list(map(len, found.windows())) == [2, 2, 2, 2, 2]


def test_too_long_lines_are_one_case_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training_core.rows.files.MAX_LINE_BYTES", 1_000)
    found = find_cases(write(tmp_path / "rows.jsonl", [record(), b'{"a": "' + b"x" * 5_000 + b'"}', record()]))
    assert found.lines == 3
    assert [case.line for case in read(found) if case.error] == [2]


def test_cases_that_change_while_they_are_read_are_noticed(tmp_path: Path) -> None:
    found = find_cases(write(tmp_path / "rows.jsonl", records(3)))
    write(tmp_path / "rows.jsonl", records(3, start=1))
    with pytest.raises(DataError, match="changed while they were read"):
        read(found)


def test_half_a_file_is_not_answered(tmp_path: Path) -> None:
    packed = CONTAINERS[".jsonl.xz"](list(map(to_line, records(100))))
    (tmp_path / "rows.jsonl.xz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"rows\.jsonl\.xz: .* write the file again"):
        find_cases(str(tmp_path / "rows.jsonl.xz"))


def test_digest_of_cases_depends_on_names_and_lines(tmp_path: Path) -> None:
    one, same = find_cases(write(tmp_path / "a.jsonl", records(2))), find_cases(str(tmp_path / "a.jsonl"))
    other_name, other_lines = (
        find_cases(write(tmp_path / "b.jsonl", records(2))),
        find_cases(write(tmp_path / "a.jsonl", records(3))),
    )
    assert one.digest == same.digest
    assert len({one.digest, other_name.digest, other_lines.digest}) == 3
