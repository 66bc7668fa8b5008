"""Files of rows as lines: a file, glob, folder or URL; JSONL, a JSON array or Parquet, plain or compressed."""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = tuple(kind + compression for kind in (".jsonl", ".ndjson", ".json") for compression in ("", ".gz", ".zst"))
MAX_LINE_BYTES = 32 * 2**20

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
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
    except Exception as error:  # the one exception to the rule, for the reason above
        raise OSError(f"{type(error).__name__}: {error}") from error


def find_files(path: str) -> list[str]:
    """The files of a path, a glob, a folder (all files of rows in it, at any depth) or a URL, sorted by name.

    Raises ``FileNotFoundError`` if there is none, and ``ImportError`` naming the package that a URL needs.
    """
    system, place = fsspec.core.url_to_fs(path)
    if system.isdir(place):
        found = [file for file in system.find(place) if file.endswith((*SUFFIXES, ".parquet"))]
    elif system.isfile(place):
        return [path]
    else:
        found = [file for file in system.glob(place) if system.isfile(file)]
    if not found:
        raise FileNotFoundError(
            f"expected a file, folder, glob or URL of rows, found no file at {path!r}; check the path"
        )
    is_url = "://" in path
    return [system.unstrip_protocol(file) if is_url else file for file in sorted(found)]


def digest_files(path: str) -> bytes:
    """SHA-256 over the contents of all files of a path."""
    digest = hashlib.sha256()
    for file in find_files(path):
        with fsspec.open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.digest()


def read_lines(file: str) -> Iterator[Line]:
    """The lines of a JSONL file (split on ``\\n`` alone), the elements of a JSON array, or the rows of a Parquet file.

    The type of a file is detected from its first bytes. Memory is bounded for any size of file or line. Raises
    ``BadFileError`` where the file cannot be read.
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
    codecs = [codec for prefix, codec in _COMPRESSED.items() if magic.startswith(prefix)]
    return pa.CompressedInputStream(stream, codecs[0]) if codecs else stream


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


def _read_parquet(stream: BinaryIO) -> Iterator[Line]:
    """Rows as lines of JSON. Parquet does not distinguish null from missing; both are read as missing."""
    number = 0
    for batch in pq.ParquetFile(stream).iter_batches(batch_size=1_000):
        for row in batch.to_pylist():
            number += 1
            try:
                text = json.dumps(_without_nulls(row), ensure_ascii=False, default=_as_text)
            except TypeError as error:
                raise BadFileError(f"row {number}: {error}; convert the column to text") from error
            yield Line(number, text.encode("utf-8", "surrogatepass"))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _as_text(value: object) -> str:
    """Dates, times and decimals as text."""
    if isinstance(value, bytes):
        raise TypeError("expected text, numbers, lists and objects, got bytes")

    return str(value)
