"""One pass over all files: rows are checked, encoded and written, and facts about them are gathered."""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import BinaryIO, TextIO

import pandas as pd
import pyarrow as pa

from training_core.config import RunConfig
from training_core.dataset.encoding import SCHEMA, encode_rows
from training_core.dataset.evaluation_findings import CaseFields
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.rows.files import BadFileError, find_files
from training_core.rows.reader import Rejected, Row, read_rows
from training_core.rows.strict_json import Problem, Record

logger = logging.getLogger(__name__)

ENCODED, REJECTED, PROBLEMS = "encoded.arrow", "rejected.jsonl", "problems.jsonl"
MOST_KEPT = 1_000
_CHUNK_ROWS, _CHUNK_BYTES = 2_000, 8 * 2**20
_ROWS_BETWEEN_LOG_LINES = 100_000

Audit = Callable[[Record], str | None]


@dataclass
class Source:
    """One file as it was read: each of its lines is a row or rejected; ``broken_off`` says why it has no end."""

    file: str
    held_out: bool
    shape: str = "unknown"
    rows: int = 0
    rejected: int = 0
    broken_off: str = ""


@dataclass
class Ingested:
    """What is gathered on the way. ``facts`` and ``entities`` are parts of the tables of ``EncodedRows``.

    ``facts`` has ``held_out_file`` besides. ``problems`` and ``contradictions`` (labels against the rules of
    ``label_audit``) are the first ones; ``unknown_keys`` maps a key that nobody reads to its first place.
    """

    sources: list[Source] = field(default_factory=list)
    facts: list[pd.DataFrame] = field(default_factory=list)
    entities: list[pd.DataFrame] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unknown_keys: dict[str, str] = field(default_factory=dict)
    case_fields: CaseFields = field(default_factory=CaseFields)
    contradictions: list[str] = field(default_factory=list)
    contradicted: int = 0
    audited: int = 0

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)


def ingest_rows(config: RunConfig, encoder: ChatEncoder, folder: Path) -> Ingested:
    """Read the rows of ``eval_path``, if given, then those of ``dataset_path``, a few at a time.

    Writes into ``folder`` the encoded rows (``encoded.arrow``, columns of ``SCHEMA``), the rejected lines byte for byte
    (``rejected.jsonl``) and why they were rejected (``problems.jsonl``). Raises ``OSError`` when there is no such file.
    """
    ingested = Ingested()
    audit: Audit | None = resolve_name(config.label_audit) if config.label_audit else None
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.ipc.new_stream(str(folder / ENCODED), SCHEMA, options=options) as stream,
        (folder / REJECTED).open("wb") as quarantine,
        (folder / PROBLEMS).open("w", encoding="utf-8") as problems,
    ):
        for source in _sources(config):
            ingested.sources.append(source)
            for items in _chunks(_until_it_breaks(source, read_rows(source.file, config.allowed_decisions))):
                encoded = encode_rows([item for item in items if isinstance(item, Row)], encoder, config)
                rows, rejected = _told_apart(items, encoded.broken)
                ingested.entities.append(encoded.entities.assign(row=encoded.entities["row"] + ingested.rows))
                ingested.facts.append(encoded.facts.assign(held_out_file=source.held_out))
                stream.write_batch(encoded.batch)
                _set_aside(rejected, quarantine, problems)
                _count(ingested, source, len(encoded.facts), rejected)
                _note(ingested, source, rows, audit)
    return ingested


def _sources(config: RunConfig) -> list[Source]:
    paths = [(config.eval_path, True), (config.dataset_path, False)]
    return [Source(file, held_out) for path, held_out in paths if path for file in find_files(path)]


def _until_it_breaks(source: Source, items: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
    try:
        yield from items
    except BadFileError as error:
        source.broken_off = str(error)


def _chunks(items: Iterable[Row | Rejected]) -> Iterator[list[Row | Rejected]]:
    """A few thousand lines at a time, or fewer where they are long; the last chunk may be empty."""
    chunk: list[Row | Rejected] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.raw)
        if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _told_apart(items: Iterable[Row | Rejected], broken: Mapping[int, Rejected]) -> tuple[list[Row], list[Rejected]]:
    """The rows that stayed whole, and all that is rejected, both in the order of the file."""
    places = itertools.count()  # of rows: elements of an array may share a line, so its number is no name for one
    sorted_out = [broken.get(next(places), item) if isinstance(item, Row) else item for item in items]
    rows = [item for item in sorted_out if isinstance(item, Row)]
    return rows, [item for item in sorted_out if isinstance(item, Rejected)]


def _set_aside(rejected: Iterable[Rejected], quarantine: BinaryIO, problems: TextIO) -> None:
    """Each rejected line as it was, and the one after it on a line of its own."""
    for item in rejected:
        quarantine.write(item.raw if item.raw.endswith(b"\n") or not item.ends else item.raw + b"\n")
        if item.problem:
            problems.write(json.dumps(asdict(item.problem), ensure_ascii=False) + "\n")


def _count(ingested: Ingested, source: Source, rows: int, rejected: Sequence[Rejected]) -> None:
    problems = [item.problem for item in rejected if item.problem]
    ingested.problems += problems[: MOST_KEPT - len(ingested.problems)]
    before = ingested.rows
    source.rows += rows
    source.rejected += len(problems)
    if before // _ROWS_BETWEEN_LOG_LINES != ingested.rows // _ROWS_BETWEEN_LOG_LINES:
        logger.info("Rows: %s read and encoded so far, %s rejected", f"{ingested.rows:,}", f"{source.rejected:,}")


def _note(ingested: Ingested, source: Source, rows: Iterable[Row], audit: Audit | None) -> None:
    for row in rows:
        source.shape = str(row.shape)
        ingested.case_fields.add(row.record)
        if len(ingested.unknown_keys) < MOST_KEPT:
            ingested.unknown_keys |= {ascii(key)[1:-1]: _place(row) for key in row.unknown_keys} | ingested.unknown_keys
        ruled = audit(row.record) if audit else None
        given = row.record["output"]["decision"]
        ingested.audited += ruled is not None
        if ruled not in (None, given):
            ingested.contradicted += 1
            if len(ingested.contradictions) < MOST_KEPT:
                ingested.contradictions.append(f"{_place(row)}: {given}, by the rules {ruled}")


def _place(row: Row) -> str:
    return f"{row.file}:{row.line}"
