"""Where rows lie: a file, a glob, a folder or a URL; JSONL, a JSON array or Parquet, plain or compressed."""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = tuple(kind + packed for kind in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst"))
LONGEST_LINE = 32 * 2**20

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:[{\]]|$)")
_SIGNS = re.compile(rb'\\.|["\[\]{},\n]', re.DOTALL)
_READ_SIZE = 2**20
_WHITE = b" \t\r\n"  # JSON's white space, nothing else


class BadFileError(ValueError):
    """A file that cannot be read to its end; the message says why and what to do."""


class Line(NamedTuple):
    """A row as it stands in its file, and its number from 1: an array's element has the line it begins on.

    What is longer than ``LONGEST_LINE`` bytes comes in pieces: all but the first have number 0, and only the last one
    ``ends`` the row.
    """

    number: int
    raw: bytes
    ends: bool = True

    @property
    def complete(self) -> bool:
        return self.number > 0 and self.ends


def find_files(path: str) -> list[str]:
    """The files behind a path, a glob, a folder (every file of rows below it) or a URL of these, in order of name.

    Raises ``FileNotFoundError`` when there is none, and ``ImportError`` naming the package that a URL needs.
    """
    system, place = fsspec.core.url_to_fs(path)
    if system.isdir(place):
        found = [file for file in system.find(place) if file.endswith((*SUFFIXES, ".parquet"))]
    elif system.isfile(place):
        return [path]
    else:
        found = [file for file in system.glob(place) if system.isfile(file)]
    if not found:
        raise FileNotFoundError(f"{path!r}: there is no file of rows")
    is_url = "://" in path
    return [system.unstrip_protocol(file) if is_url else file for file in sorted(found)]


def digest_files(path: str) -> bytes:
    """SHA-256 over the contents of all files behind a path."""
    digest = hashlib.sha256()
    for file in find_files(path):
        with fsspec.open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.digest()


def read_lines(file: str) -> Iterator[Line]:
    """The lines of a JSONL file (split on ``\\n`` alone), the elements of a JSON array, or the rows of a Parquet file.

    What a file is, is read from its first bytes. Memory is bounded whatever the size of the file or of a line. Raises
    ``BadFileError`` where it cannot be read on.
    """
    try:
        with fsspec.open(file, "rb") as stream:
            magic = stream.read(4)
            stream.seek(0)
            if magic == b"PAR1":
                yield from _read_parquet(stream)
            else:
                yield from _read_text(io.BufferedReader(_decompressed(stream, magic), _READ_SIZE))
    except BadFileError:
        raise
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise BadFileError(f"{' '.join(str(error).split())}; copy or write the file again") from error


def _decompressed(stream: BinaryIO, magic: bytes) -> Any:
    kinds = [kind for mark, kind in _COMPRESSED.items() if magic.startswith(mark)]
    return pa.CompressedInputStream(stream, kinds[0]) if kinds else stream


def _read_text(stream: io.BufferedReader) -> Iterator[Line]:
    return _split_array(stream) if _ARRAY.match(stream.peek()) else _split_lines(stream)


def _split_lines(stream: io.BufferedReader) -> Iterator[Line]:
    number, inside = 0, False
    while raw := stream.readline(LONGEST_LINE):
        cut = not raw.endswith(b"\n") and bool(stream.peek(1))
        number += not inside
        yield Line(0 if inside else number, raw, ends=not cut)
        inside = cut


def _split_array(stream: io.BufferedReader) -> Iterator[Line]:
    """Elements are found by brackets and quotes alone; whether one is proper JSON is for its reader to say."""
    element, line, depth, quoted, opened = _Element(1), 1, 0, False, False
    while chunk := stream.read(_READ_SIZE):
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:
            chunk += stream.read(1)  # what is escaped stays beside its backslash
        start = 0
        for sign in _SIGNS.finditer(chunk):
            mark = sign[0]
            line += mark.endswith(b"\n")
            quoted ^= mark == b'"'
            if quoted or mark not in (b"[", b"{", b"]", b"}", b","):
                continue
            depth += (mark in b"[{") - (mark in b"]}")
            if not opened or (depth, mark) in ((1, b","), (0, b"]")):
                yield from element.close(chunk[start : sign.start()] if opened else b"")
                element, start, opened = _Element(line), sign.end(), True
        yield from element.add(chunk[start:])
    begins = element.line
    yield from element.close(b"")
    if depth or quoted:
        raise BadFileError(f"brackets or quotes of the array do not match from line {begins} on; mend it there")


class _Element:
    """The bytes of an array's element as they come in."""

    def __init__(self, line: int) -> None:
        self.line, self.raw, self.split = line, b"", False

    def add(self, raw: bytes) -> Iterator[Line]:
        self.raw += raw
        if len(self.raw) > LONGEST_LINE:
            yield Line(self._number(), self.raw, ends=False)
            self.raw, self.split = b"", True

    def close(self, raw: bytes) -> Iterator[Line]:
        self.raw += raw
        if self.split or self.raw.strip(_WHITE):
            yield Line(self._number(), self.raw if self.split else self.raw.strip(_WHITE))

    def _number(self) -> int:
        if self.split:
            return 0
        blank = len(self.raw) - len(self.raw.lstrip(_WHITE))
        return self.line + self.raw.count(b"\n", 0, blank)


def _read_parquet(stream: BinaryIO) -> Iterator[Line]:
    """Rows as the JSON they would be in a JSONL file. Parquet cannot tell null from missing: both are missing."""
    number = 0
    for batch in pq.ParquetFile(stream).iter_batches(batch_size=1_000):
        for row in batch.to_pylist():
            number += 1
            try:
                text = json.dumps(_without_nulls(row), ensure_ascii=False, default=_as_text)
            except TypeError as error:
                raise BadFileError(f"row {number}: {error}; write texts, numbers, lists and objects only") from error
            yield Line(number, text.encode("utf-8", "surrogatepass"))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _as_text(value: object) -> str:
    """Dates, times and decimals."""
    if isinstance(value, bytes):
        raise TypeError("bytes stand in a column")
    return str(value)
