"""JSONL, JSON arrays and Parquet yield every line exactly once."""

import datetime
import gzip
import json
from decimal import Decimal
from io import BufferedReader, BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_samples import records, to_line

from samples.row_formats import CONTAINERS
from training_core.rows import files
from training_core.rows.files import BadFileError, Line, read_lines

LINES = [to_line(row) for row in records(5)]
COMPRESSED = [".jsonl.gz", ".jsonl.zst", ".jsonl.bz2", ".jsonl.xz"]


def read(path: Path, content: bytes) -> list[Line]:
    path.write_bytes(content)
    return list(read_lines(str(path)))


def texts(lines: list[Line]) -> list[bytes]:
    return [line.raw.rstrip(b"\n") for line in lines]


# Containers


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.gz", "rows"])
def test_container_is_detected_from_bytes_not_from_the_name(tmp_path: Path, container: str, name: str) -> None:
    lines = read(tmp_path / name, CONTAINERS[container](LINES))
    assert [json.loads(line.raw) for line in lines] == records(5)
    assert [line.number for line in lines] == ([2, 3, 4, 5, 6] if container == ".json" else [1, 2, 3, 4, 5])


@pytest.mark.parametrize("container", COMPRESSED)
def test_concatenated_compressed_files_are_read_completely(tmp_path: Path, container: str) -> None:
    pack = CONTAINERS[container]
    content = pack(LINES[:2]) + pack([]) + pack(LINES[2:])
    assert texts(read(tmp_path / "rows", content)) == LINES


@pytest.mark.parametrize("container", [*COMPRESSED, ".parquet"])
def test_truncated_file_is_a_bad_file(tmp_path: Path, container: str) -> None:
    content = CONTAINERS[container](LINES * 20)
    for length in {*range(4, 40), *range(40, len(content), 397), len(content) - 1}:
        with pytest.raises(BadFileError, match="again"):
            read(tmp_path / "rows", content[:length])


@pytest.mark.parametrize("container", COMPRESSED)
def test_bytes_after_compressed_data_are_a_bad_file(tmp_path: Path, container: str) -> None:
    with pytest.raises(BadFileError):
        read(tmp_path / "rows", CONTAINERS[container](LINES) + b"rubbish")


def test_rows_before_a_truncation_are_yielded(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(gzip.compress(b"{}\n" * 500_000)[:-8])
    lines = read_lines(str(tmp_path / "rows"))
    assert next(lines) == Line(1, b"{}\n")
    with pytest.raises(BadFileError):
        list(lines)


# Lines


def test_lines_end_at_a_newline_only(tmp_path: Path) -> None:
    content = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh".encode()
    assert texts(read(tmp_path / "rows", content + b"\n" + content)) == [content, content]


@pytest.mark.parametrize("chunk", [5, 7, 8, 100])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_line_beyond_the_maximum_is_yielded_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, end: bytes
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", chunk)
    monkeypatch.setattr(files, "_READ_SIZE", 3)
    content = b"short\n" + b"x" * 20 + b"\nlast" + end
    lines = read(tmp_path / "rows", content)
    assert b"".join(line.raw for line in lines) == content
    assert [line.number for line in lines if line.number] == [1, 2, 3]
    assert [line.raw for line in lines if line.complete] == [
        raw for raw in content.splitlines(keepends=True) if len(raw) <= chunk
    ]
    assert sum(line.ends for line in lines) == 3
    assert max(len(line.raw) for line in lines) <= chunk


# JSON arrays


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    "elements",
    [
        [],
        ["{}"],
        ['{"a": "]},[{"}', '{"b": "\\"}, {"}'],
        ['{"a": "\\\\"}', '{"b": "\\\\\\\\\\""}', '{"\\\\": "\\\\\\\\"}'],
        ['{"a": [1, [2, {"b": []}], 3]}', '{"c": {"d": {}, "e": 1}}'],
        ['{"a": "x,y"}', "3", '"text"', "null", "[]", "[1, 2]"],
    ],
)
def test_array_is_split_correctly_for_any_chunk_size(
    monkeypatch: pytest.MonkeyPatch, elements: list[str], size: int
) -> None:
    monkeypatch.setattr(files, "_READ_SIZE", size)
    for separator in (",", " ,\r\n ", ",\n\n"):
        content = f" [ {separator.join(elements)} ]\n"
        lines = files._split_array(BufferedReader(BytesIO(content.encode())))
        assert [line.raw.decode() for line in lines] == elements


def test_array_split_matches_its_worked_example(tmp_path: Path) -> None:
    content = b'[{"a": "x,]"},\n {"b": [1, 2]}]'
    assert read(tmp_path / "rows", content) == [Line(1, b'{"a": "x,]"}'), Line(2, b'{"b": [1, 2]}')]
    (tmp_path / "rows").write_bytes(b'[{"a": 1}, {"b": 2')
    lines = read_lines(str(tmp_path / "rows"))
    assert [next(lines).raw, next(lines).raw] == [b'{"a": 1}', b'{"b": 2']
    with pytest.raises(BadFileError):
        next(lines)


def test_array_element_has_the_line_number_of_its_start(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf[\n\n{"a":\n1},{"b": 2}\n,\n\n{"c": 3}]'
    assert [(line.number, line.raw) for line in read(tmp_path / "rows", content)] == [
        (3, b'{"a":\n1}'),
        (4, b'{"b": 2}'),
        (7, b'{"c": 3}'),
    ]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'[{"a": 1} {"b": 2}]', [b'{"a": 1} {"b": 2}']),
        (b'[{"a": 1}, x, {"b": 2}] rubbish', [b'{"a": 1}', b"x", b'{"b": 2}', b"rubbish"]),
        (b'[{"a": 1}]\n[{"b": 2}]', [b'{"a": 1}', b'[{"b": 2}']),
        (b'[{"a": 1}, \x0b]', [b'{"a": 1}', b"\x0b"]),
    ],
)
def test_array_yields_invalid_elements_too(tmp_path: Path, content: bytes, rows: list[bytes]) -> None:
    assert [line.raw for line in read(tmp_path / "rows.json", content)] == rows


@pytest.mark.parametrize(
    "content",
    [
        b'[{"a": 1}, {"b": 2}',
        b'[{"a": 1},',
        b'[{"a": 1}, {"b": ',
        b'[{"a": "never closed}, {"b": 2}]',
        b'[{"a": 1}, {"never closed": 2, {"b": 2}, {"c": 3}]',
        b'[{"a": 1}}, {"b": 2}, {"c": 3}]',
    ],
)
def test_array_with_unmatched_brackets_is_a_bad_file(tmp_path: Path, content: bytes) -> None:
    """One missing brace would swallow all rows after it as a single rejected line."""
    with pytest.raises(BadFileError, match="unmatched one from line 1 on"):
        read(tmp_path / "rows.json", content)


@pytest.mark.parametrize("content", [b"[1, 2]\n", b'[[{"a": 1}]]\n', b'["x"]\n', b'["role", {}]\n'])
def test_lists_on_lines_are_not_an_array(tmp_path: Path, content: bytes) -> None:
    assert [line.raw for line in read(tmp_path / "rows.jsonl", content * 2)] == [content, content]


def test_array_element_beyond_the_maximum_is_yielded_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 50)
    monkeypatch.setattr(files, "_READ_SIZE", 20)
    huge = b'{"a": "' + b"x" * 200 + b'"}'
    lines = read(tmp_path / "rows.json", b'[{"first": 1},\n' + huge + b',\n{"last": 1}]')
    assert [line.raw for line in lines if line.complete] == [b'{"first": 1}', b'{"last": 1}']
    assert b"".join(line.raw for line in lines if not line.complete).strip() == huge
    assert [line.number for line in lines if line.number] == [1, 2, 3]
    assert sum(line.ends for line in lines) == 3


# Parquet


def parquet(**columns: object) -> bytes:
    file = BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def test_parquet_rows_omit_nulls_and_have_dates_as_text(tmp_path: Path) -> None:
    day, price = datetime.date(2026, 2, 3), Decimal("12.50")
    content = parquet(
        input=[{"day": day, "price": price, "lost": None, "list": [1, None]}, None],
        note=[None, "é\u2028"],
        n=[1, 2**62],
    )
    assert [json.loads(line.raw) for line in read(tmp_path / "rows", content)] == [
        {"input": {"day": "2026-02-03", "price": "12.50", "list": [1, None]}, "n": 1},
        {"note": "é\u2028", "n": 2**62},
    ]


def test_parquet_nan_is_left_to_the_row_reader(tmp_path: Path) -> None:
    assert b"NaN" in read(tmp_path / "rows", parquet(a=[float("nan")]))[0].raw


BROKEN_TEXT = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))


@pytest.mark.parametrize(
    "column",
    [[b"bytes"], BROKEN_TEXT, pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))],
    ids=["bytes", "text that is not UTF-8", "year 146,000"],
)
def test_parquet_column_without_json_form_is_a_bad_file(tmp_path: Path, column: object) -> None:
    with pytest.raises(BadFileError) as caught:
        read(tmp_path / "rows", parquet(a=column))
    assert str(caught.value).count(";") == 1
