"""Files, folders, globs and URLs; JSONL, JSON arrays and Parquet; whole or broken: every line comes out once."""

import datetime
import gzip
import json
from decimal import Decimal
from io import BufferedReader, BytesIO
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_samples import records, to_line

from samples.row_formats import CONTAINERS
from training_core.rows import files
from training_core.rows.files import BadFileError, Line, digest_files, find_files, read_lines

LINES = [to_line(row) for row in records(5)]


def read(path: Path, content: bytes) -> list[Line]:
    path.write_bytes(content)
    return list(read_lines(str(path)))


def texts(lines: list[Line]) -> list[bytes]:
    return [line.raw.rstrip(b"\n") for line in lines]


# Where files lie


def test_a_file_is_itself_whatever_its_name(tmp_path: Path) -> None:
    for name in ("rows", "rows[1].jsonl", "r*ws.txt", "a b.jsonl"):
        (tmp_path / name).touch()
        assert find_files(str(tmp_path / name)) == [str(tmp_path / name)]


def test_a_folder_holds_its_files_of_rows_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    wanted = ["a.jsonl", "b.json.gz", "deep/er/c.parquet", "deep/d.ndjson.zst"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "folder.jsonl").mkdir()
    for name in [*wanted, "README.md", "rows.csv", "rows.jsonl.meta", "parquet"]:
        (tmp_path / name).touch()
    assert find_files(str(tmp_path)) == sorted(str(tmp_path / name) for name in wanted)


def test_a_glob_gives_the_files_it_matches_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.jsonl").mkdir()
    assert find_files(str(tmp_path / "*.jsonl")) == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


@pytest.mark.parametrize("path", ["nowhere.jsonl", "*.jsonl", ".", "empty", "nowhere/rows.jsonl"])
def test_where_there_are_no_rows_there_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no file of rows"):
        find_files(str(tmp_path / path))


def test_a_url_is_read_like_a_path(tmp_path: Path) -> None:
    for name, pack in CONTAINERS.items():
        fsspec.filesystem("memory").pipe(f"/shop/rows{name}", pack(LINES))
    assert find_files("memory://shop") == [f"memory:///shop/rows{name}" for name in sorted(CONTAINERS)]
    for file in find_files("memory://shop/*"):
        assert [json.loads(line.raw) for line in read_lines(file)] == records(5)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(LINES))
    assert digest_files(f"file://{tmp_path}/rows.jsonl") == digest_files(str(tmp_path / "rows.jsonl"))


def test_a_protocol_nobody_knows_is_rejected() -> None:
    with pytest.raises(ValueError, match="nosuch"):
        find_files("nosuch://bucket/rows.jsonl")


def test_the_digest_tells_contents_and_their_order_apart(tmp_path: Path) -> None:
    for name, content in {"a": (b"x", b"y"), "b": (b"y", b"x"), "c": (b"xy", b""), "d": (b"x", b"y")}.items():
        (tmp_path / name).mkdir()
        for part, raw in enumerate(content):
            (tmp_path / name / f"{part}.jsonl").write_bytes(raw)
    a, b, c, d = (digest_files(str(tmp_path / name)) for name in "abcd")
    assert len({a, b, c}) == 3
    assert a == d


# Containers


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.gz", "rows"])
def test_what_a_file_is_is_read_from_its_bytes_not_from_its_name(tmp_path: Path, container: str, name: str) -> None:
    lines = read(tmp_path / name, CONTAINERS[container](LINES))
    assert [json.loads(line.raw) for line in lines] == records(5)
    assert [line.number for line in lines] == ([2, 3, 4, 5, 6] if container == ".json" else [1, 2, 3, 4, 5])


@pytest.mark.parametrize("container", [".jsonl.gz", ".jsonl.zst"])
def test_compressed_files_put_together_are_read_to_the_end(tmp_path: Path, container: str) -> None:
    pack = CONTAINERS[container]
    content = pack(LINES[:2]) + pack([]) + pack(LINES[2:])
    assert texts(read(tmp_path / "rows", content)) == LINES


@pytest.mark.parametrize("container", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_file_cut_off_anywhere_is_a_bad_file_and_nothing_worse(tmp_path: Path, container: str) -> None:
    content = CONTAINERS[container](LINES * 20)
    for length in {*range(4, 40), *range(40, len(content), 397), len(content) - 1}:
        with pytest.raises(BadFileError, match="again"):
            read(tmp_path / "rows", content[:length])


@pytest.mark.parametrize("container", [".jsonl.gz", ".jsonl.zst"])
def test_rubbish_behind_a_compressed_file_is_not_passed_over(tmp_path: Path, container: str) -> None:
    with pytest.raises(BadFileError):
        read(tmp_path / "rows", CONTAINERS[container](LINES) + b"rubbish")


def test_rows_before_the_place_where_a_file_breaks_off_are_given_out(tmp_path: Path) -> None:
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
def test_a_line_too_long_comes_in_pieces_that_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, end: bytes
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", chunk)
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
def test_an_array_is_split_as_json_says_wherever_it_is_cut_for_reading(
    monkeypatch: pytest.MonkeyPatch, elements: list[str], size: int
) -> None:
    monkeypatch.setattr(files, "_READ_SIZE", size)
    for separator in (",", " ,\r\n ", ",\n\n"):
        content = f" [ {separator.join(elements)} ]\n"
        lines = files._split_array(BufferedReader(BytesIO(content.encode())))
        assert [line.raw.decode() for line in lines] == elements


def test_an_element_has_the_number_of_the_line_it_begins_on(tmp_path: Path) -> None:
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
def test_what_is_wrong_in_an_array_comes_out_to_be_rejected(tmp_path: Path, content: bytes, rows: list[bytes]) -> None:
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
def test_an_array_whose_brackets_or_quotes_do_not_match_is_a_file_that_breaks_off(
    tmp_path: Path, content: bytes
) -> None:
    """One forgotten brace would swallow all rows behind it as a single rejected line."""
    with pytest.raises(BadFileError, match="do not match from line 1 on"):
        read(tmp_path / "rows.json", content)


@pytest.mark.parametrize("content", [b"[1, 2]\n", b'[[{"a": 1}]]\n', b'["x"]\n', b'["role", {}]\n'])
def test_a_line_that_is_a_list_makes_no_array_of_a_file(tmp_path: Path, content: bytes) -> None:
    assert [line.raw for line in read(tmp_path / "rows.jsonl", content * 2)] == [content, content]


def test_an_element_too_long_comes_in_pieces_and_the_next_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 50)
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


def test_a_table_gives_rows_without_what_is_null_with_dates_as_text(tmp_path: Path) -> None:
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


def test_a_number_that_is_none_is_left_for_the_reader_of_the_row_to_refuse(tmp_path: Path) -> None:
    assert b"NaN" in read(tmp_path / "rows", parquet(a=[float("nan")]))[0].raw


BROKEN_TEXT = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))


@pytest.mark.parametrize(
    "column",
    [[b"bytes"], BROKEN_TEXT, pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))],
    ids=["bytes", "text that is no UTF-8", "year 146,000"],
)
def test_a_column_that_cannot_be_said_in_json_is_a_bad_file(tmp_path: Path, column: object) -> None:
    with pytest.raises(BadFileError) as caught:
        read(tmp_path / "rows", parquet(a=column))
    assert str(caught.value).count(";") == 1
