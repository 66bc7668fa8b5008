"""Every line that is not blank is a row or is rejected with its place and its bytes."""

import json
from pathlib import Path

import pytest
from row_samples import record, records, to_line, write

from samples.bad_lines import CORRUPTIONS, plant_bad_lines
from samples.cases import generate_rows
from samples.row_formats import FORMATS
from training_core.data_loader import LoadedRows, load_jsonl
from training_core.rows import files, reader


def load(path: Path, content: bytes) -> LoadedRows:
    path.write_bytes(content)
    return load_jsonl(path)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path, line_end: bytes, mark: bytes) -> None:
    loaded = load(tmp_path / "rows.jsonl", mark + line_end.join(map(to_line, records(5))))
    assert [row.record for row in loaded.rows] == records(5)
    assert [row.line for row in loaded.rows] == [1, 2, 3, 4, 5]


def test_blank_lines_count_only_in_line_numbers(tmp_path: Path) -> None:
    first, second = records(2)
    loaded = load_jsonl(
        write(tmp_path / "rows.jsonl", [b"", first, b"  \t", b"\r", second, b"", b"{", b"\xef\xbb\xbf"])
    )
    assert [row.line for row in loaded.rows] == [2, 5]
    assert [item.problem.line for item in loaded.rejected if item.problem] == [7]


@pytest.mark.parametrize("raw", [b"\xbf\xbf", b"\xef\xbb", "ﻻ".encode(), b"\x00", b"\x0b", b"\x0c", b"\xc2\xa0"])
def test_blank_lines_have_only_white_space_of_json(tmp_path: Path, raw: bytes) -> None:
    """Any other line must be accounted for."""
    loaded = load_jsonl(write(tmp_path / "rows.jsonl", [raw]))
    assert [item.raw for item in loaded.rejected] == [raw + b"\n"]


@pytest.mark.parametrize("content", [b"", b"\n\n\n", b"\xef\xbb\xbf", b"[]", b" [ ]\n", b"\xef\xbb\xbf[\n]"])
def test_empty_file_has_no_rows(tmp_path: Path, content: bytes) -> None:
    assert load(tmp_path / "rows.jsonl", content) == LoadedRows([], [])


def test_truncated_last_line_is_the_only_one_rejected(tmp_path: Path) -> None:
    loaded = load(tmp_path / "rows.jsonl", b"\n".join(map(to_line, records(3)))[:-9])
    assert [row.line for row in loaded.rows] == [1, 2]
    assert [item.problem.line for item in loaded.rejected if item.problem] == [3]


def test_rejected_lines_keep_their_bytes_and_numbers(tmp_path: Path) -> None:
    lines = list(plant_bad_lines(generate_rows(300, seed=3), share=0.5, seed=3))
    rejected = [line.data for line in lines if line.kind in CORRUPTIONS and line.kind != "overlong"]
    loaded = load(tmp_path / "rows.jsonl", b"".join(line.data for line in lines))
    assert [item.raw for item in loaded.rejected] == rejected
    assert [item.problem.line for item in loaded.rejected if item.problem] == [
        number for number, line in enumerate(lines, 1) if line.data in rejected
    ]


@pytest.mark.parametrize("path", ["nowhere.jsonl", "."])
def test_unreadable_file_raises(tmp_path: Path, path: str) -> None:
    with pytest.raises((OSError, ValueError)):
        load_jsonl(tmp_path / path)


@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize(
    "corrupt",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace(b"Eligible", b" "),
        lambda line: line.replace(b"decision", b"verdict"),
        lambda line: b'{"instruction": "x", "input": {}, "output": "text"}',
        lambda line: b'{"messages": [{"role": "user", "content": "Hello"}]}',
    ],
    ids=["cut", "no decision", "other key", "text for output", "no answer"],
)
def test_format_is_not_detected_from_a_rejected_line(tmp_path: Path, row_format: str, corrupt) -> None:  # type: ignore[no-untyped-def]
    lines = [to_line(FORMATS[row_format](row)) for row in records(4)]
    loaded = load_jsonl(write(tmp_path / "rows.jsonl", [corrupt(lines[0]), *lines[1:]]))
    assert [row.record for row in loaded.rows] == records(4)[1:]
    assert len(loaded.rejected) == 1


def test_unknown_keys_are_reported(tmp_path: Path) -> None:
    (row, other) = load_jsonl(write(tmp_path / "rows.jsonl", [record(id=7, Input={}), record()])).rows
    assert row.unknown_keys == {"id", "Input"}
    assert other.unknown_keys == frozenset()
    assert row.record == other.record == record()


def test_line_beyond_the_maximum_is_rejected_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, reader):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 2_000)
    long = to_line(record(output={"reason": "x" * 9_000}))
    loaded = load_jsonl(write(tmp_path / "rows.jsonl", [*records(2), long, *records(2)]))
    assert [row.line for row in loaded.rows] == [1, 2, 4, 5]
    assert b"".join(item.raw for item in loaded.rejected) == long + b"\n"
    assert [item.problem.line for item in loaded.rejected if item.problem] == [3]


def test_record_equals_the_json_of_its_line(tmp_path: Path) -> None:
    rows = list(generate_rows(30, seed=9))
    for row, written in zip(load_jsonl(write(tmp_path / "rows.jsonl", rows)).rows, rows, strict=True):
        assert row.record["output"] == written["output"]
        assert json.loads(row.raw) == written
