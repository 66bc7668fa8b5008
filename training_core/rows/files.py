"""Files of rows as lines: JSONL, a JSON array or Parquet, plain or compressed."""

import bz2
import contextlib
import io
import json
import lzma
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

MAX_LINE_BYTES = 32 * 2**20

# By a file's first bytes.
_COMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": partial(pa.CompressedInputStream, compression="gzip"),
    b"\x28\xb5\x2f\xfd": partial(pa.CompressedInputStream, compression="zstd"),
    b"BZh": lambda stream: _Decompressed(stream, bz2.BZ2Decompressor),
    b"\xfd7zX": lambda stream: _Decompressed(stream, lzma.LZMADecompressor),
}
_ZIP = b"PK\x03\x04"
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:[{\]]|$)")
_STRUCTURAL = re.compile(rb'\\.|["\[\]{},\n]', re.DOTALL)  # an escaped byte is one match, so \" is no quote
_READ_SIZE = 2**20
_JSON_WHITE_SPACE = b" \t\r\n"


class BadFileError(ValueError):
    """A file that cannot be read completely; the message says why and how to fix it."""


class Line(NamedTuple):
    """The bytes of a row and its line number from 1; for an element of an array, the line on which it begins.

    A row longer than ``MAX_LINE_BYTES`` is yielded in pieces: all but the first have number 0, and only the last has
    ``ends``.
    """

    number: int
    raw: bytes
    ends: bool = True

    @property
    def complete(self) -> bool:
        return self.number > 0 and self.ends


@contextlib.contextmanager
def client_errors_as_os_errors() -> Iterator[None]:
    """Turn errors that only a store's client knows into ``OSError``.

    fsspec documents no error types. Its own errors are ``OSError``, ``ValueError`` (unknown protocol) and
    ``ImportError`` (protocol whose package is not installed), and pass unchanged. The packages behind s3://, gs:// and
    others let errors of botocore, aiohttp or google-auth through, which derive from ``Exception`` directly; these
    packages are optional, so their types cannot be imported here.
    """
    try:
        yield
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:  # for the reason above
        raise OSError(f"{type(error).__name__}: {error}") from error


def open_file(file: str) -> Any:
    """A file of this machine under any name, such as ``a::b*.jsonl``, in which fsspec would see more; else a URL's."""
    if os.path.isfile(file):  # noqa: PTH113  accepts a name of any length
        return Path(file).open("rb")
    return fsspec.open(file, "rb").open()


def read_lines(file: str, columns: Collection[str] | None = None) -> Iterator[Line]:
    """The lines of a JSONL file (split on ``\\n`` alone), the elements of a JSON array, or the rows of a Parquet file.

    The type of a file is detected from its first bytes. Of a Parquet file only ``columns`` are read, if given; others
    are null in every line. Memory is bounded for any file. Raises ``BadFileError`` where the file cannot be read.
    """
    try:
        with open_file(file) as stream:
            magic = stream.read(4)
            stream.seek(0)
            if magic == b"PAR1":
                yield from _read_parquet(stream, columns)
            else:
                yield from _read_text(io.BufferedReader(_decompressed(stream, magic), _READ_SIZE))
    except BadFileError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, lzma.LZMAError, pa.ArrowException) as error:
        raise BadFileError(f"{' '.join(str(error).split())}; copy or write the file again") from error


def _decompressed(stream: BinaryIO, magic: bytes) -> Any:
    if magic == _ZIP:
        raise BadFileError("expected rows, got a ZIP archive; unpack it, or compress each file with gzip or zstd")
    openers = [opener for prefix, opener in _COMPRESSED.items() if magic.startswith(prefix)]
    return openers[0](stream) if openers else stream


class _Decompressed(io.RawIOBase):
    """The content of a bzip2 or xz file of one or more streams, as parallel compressors write them.

    Python's own readers ignore what follows the last whole stream, and so would lose the rows of a damaged one.
    """

    def __init__(self, stream: BinaryIO, new: Callable[[], Any]) -> None:
        self._stream, self._new, self._decompressor, self._rest = stream, new, new(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content:
            if self._decompressor.eof:
                self._rest = self._decompressor.unused_data or self._stream.read(_READ_SIZE)
                if not self._rest:
                    return 0
                self._decompressor = self._new()
            elif self._decompressor.needs_input and not self._rest:
                self._rest = self._stream.read(_READ_SIZE)
                if not self._rest:
                    raise EOFError("the file ends within its compressed data")
            content, self._rest = self._decompressor.decompress(self._rest, len(buffer)), b""
        buffer[: len(content)] = content
        return len(content)


def _read_text(stream: io.BufferedReader) -> Iterator[Line]:
    return _split_array(stream) if _ARRAY.match(stream.peek()) else _split_lines(stream)


def _split_lines(stream: io.BufferedReader) -> Iterator[Line]:
    number, continues = 0, False
    while raw := stream.readline(MAX_LINE_BYTES):
        ends = raw.endswith(b"\n") or not stream.peek(1)
        number += not continues
        yield Line(0 if continues else number, raw, ends)
        continues = not ends


# Splits a JSON array into its elements while streaming: a scan for structural characters, without parsing. It counts
# the depth of brackets outside strings; a comma at depth 1 and the ] that returns to depth 0 end an element.
#
#     [{"a": "x,]"},                →  Line(1, b'{"a": "x,]"}')     the comma and ] in the string do not count
#      {"b": [1, 2]}]               →  Line(2, b'{"b": [1, 2]}')    its comma is at depth 3
#
#     [{"a": 1}, {"b": 2           →  both elements, then BadFileError: at the end the depth is 2, not 0
#
# Whether an element is valid JSON is checked later, by ``parse_json``.
def _split_array(stream: io.BufferedReader) -> Iterator[Line]:
    element, line, depth, in_string, in_array = _Element(1), 1, 0, False, False
    while chunk := stream.read(_READ_SIZE):
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:
            chunk += stream.read(1)  # keep an escaped byte with its backslash
        start = 0
        for match in _STRUCTURAL.finditer(chunk):
            char = match[0]
            line += char.endswith(b"\n")
            in_string ^= char == b'"'
            if in_string or char not in (b"[", b"{", b"]", b"}", b","):
                continue
            depth += (char in b"[{") - (char in b"]}")
            if not in_array or (depth, char) in ((1, b","), (0, b"]")):
                yield from element.end(chunk[start : match.start()] if in_array else b"")
                element, start, in_array = _Element(line), match.end(), True
        yield from element.add(chunk[start:])
    begins = element.line
    yield from element.end(b"")
    if depth or in_string:
        found = f"an unmatched one from line {begins} on"
        raise BadFileError(f"expected balanced brackets and quotes in the array, got {found}; fix the element there")


class _Element:
    """The bytes of an array's element, gathered chunk by chunk and yielded in pieces if they are too many."""

    def __init__(self, line: int) -> None:
        self.line, self.raw, self.in_pieces = line, b"", False

    def add(self, raw: bytes) -> Iterator[Line]:
        self.raw += raw
        if len(self.raw) > MAX_LINE_BYTES:
            yield Line(self._number(), self.raw, ends=False)
            self.raw, self.in_pieces = b"", True

    def end(self, raw: bytes) -> Iterator[Line]:
        self.raw += raw
        if self.in_pieces or self.raw.strip(_JSON_WHITE_SPACE):
            yield Line(self._number(), self.raw if self.in_pieces else self.raw.strip(_JSON_WHITE_SPACE))

    def _number(self) -> int:
        if self.in_pieces:
            return 0
        blank = len(self.raw) - len(self.raw.lstrip(_JSON_WHITE_SPACE))
        return self.line + self.raw.count(b"\n", 0, blank)


def _read_parquet(stream: BinaryIO, columns: Collection[str] | None) -> Iterator[Line]:
    """Rows as lines of JSON. Parquet does not distinguish null from missing; both are read as missing."""
    file, number = pq.ParquetFile(stream), 0
    names = file.schema_arrow.names
    read = [name for name in names if columns is None or name in columns]
    _reject_equal_names([file.schema_arrow.field(place) for place, name in enumerate(names) if name in read])
    not_read = dict.fromkeys(name for name in names if name not in read)
    for batch in file.iter_batches(batch_size=1_000, columns=read):
        for row in _as_objects(batch, number):
            number += 1
            try:
                text = json.dumps(_without_nulls(row) | not_read, ensure_ascii=False, default=_as_text)
            except TypeError as error:
                raise BadFileError(f"row {number}: {error}; convert the column to text") from error
            yield Line(number, text.encode("utf-8", "surrogatepass"))


def _as_objects(batch: pa.RecordBatch, before: int) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
    except (LookupError, ValueError, OverflowError, pa.ArrowException) as error:  # equal keys, years above 9999
        cause = " ".join(str(error).split()).strip("\"'")
        where = f"rows {before + 1:,} to {before + batch.num_rows:,}"
        raise BadFileError(f"{where}: {cause.rstrip('.')}; correct the values or convert the column to text") from error
    return rows


def _reject_equal_names(fields: Sequence[pa.Field], parent: str = "") -> None:
    """Raise ``BadFileError`` for two columns, or two fields of a column, of one name: reading keeps only the last."""
    for name, count in Counter(field.name for field in fields).items():
        if count > 1:
            raise BadFileError(f"expected each column once, got {parent + name!r} {count} times; rename or remove one")
    for field in fields:
        if pa.types.is_struct(field.type):
            _reject_equal_names(list(field.type), f"{parent}{field.name}.")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _as_text(value: object) -> str:
    """Dates, times and decimals as text."""
    if isinstance(value, bytes):
        raise TypeError("expected text, numbers, lists and objects, got bytes")

    return str(value)
