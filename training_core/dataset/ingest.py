"""One pass over all files: read, check, encode and write the rows, and gather facts about them."""

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

import pandas as pd
import pyarrow as pa

from training_core.config import RunConfig
from training_core.dataset.encoding import SCHEMA, encode_rows
from training_core.dataset.evaluation_findings import CaseFields
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.rows.files import BadFileError
from training_core.rows.locate import locate_files
from training_core.rows.reader import Rejected, Row, read_rows
from training_core.rows.strict_json import Problem, Record
from training_core.user_functions import UserFunction

logger = logging.getLogger(__name__)

ENCODED, REJECTED, PROBLEMS = "encoded.arrow", "rejected.jsonl", "problems.jsonl"
MAX_KEPT = 1_000
_CHUNK_ROWS, _CHUNK_BYTES = 2_000, 8 * 2**20
_ROWS_BETWEEN_LOG_LINES = 100_000


@dataclass(frozen=True)
class Audits:
    """The user's checks of rows, where the settings name them: of labels, and of answers."""

    label: UserFunction | None
    answer: UserFunction | None

    @classmethod
    def of(cls, config: RunConfig) -> "Audits":
        """Import the functions that the settings name."""
        names = {name: getattr(config, name) for name in ("label_audit", "answer_audit")}
        return cls(*(UserFunction.load(name, value) if value else None for name, value in names.items()))


@dataclass
class Source:
    """One file: how many of its lines are rows or rejected; ``error`` says why it was not read completely."""

    file: str
    held_out: bool
    format: str = "unknown"
    rows: int = 0
    rejected: int = 0
    error: str = ""

    @property
    def lines(self) -> int:
        return self.rows + self.rejected


@dataclass
class Ingested:
    """What the pass over the files gathers.

    ``facts``, ``entities`` and ``beginnings`` are parts of the tables of ``EncodedRows``; ``facts`` also has
    ``held_out_file``. The lists have the first ``MAX_KEPT``: ``problems``, ``contradictions`` (labels that contradict
    ``label_audit``) and ``answer_problems`` (of ``answer_audit``). ``unknown_keys`` maps each key that is not used to
    its first place, ``not_read`` each file that is not read to the reason.
    """

    sources: list[Source] = field(default_factory=list)
    facts: list[pd.DataFrame] = field(default_factory=list)
    entities: list[pd.DataFrame] = field(default_factory=list)
    beginnings: list[pd.DataFrame] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unknown_keys: dict[str, str] = field(default_factory=dict)
    not_read: dict[str, str] = field(default_factory=dict)
    case_fields: CaseFields = field(default_factory=CaseFields)
    contradictions: list[str] = field(default_factory=list)
    contradicted: int = 0
    answer_problems: list[str] = field(default_factory=list)
    bad_answers: int = 0
    audited: int = 0

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)


def ingest_rows(config: RunConfig, encoder: ChatEncoder, folder: Path) -> Ingested:
    """Read the rows of ``eval_path``, if given, then those of ``dataset_path``, in chunks.

    Writes to ``folder``: the encoded rows (``encoded.arrow``, columns of ``SCHEMA``), the rejected lines byte for byte
    (``rejected.jsonl``), and why each was rejected (``problems.jsonl``). Raises ``OSError`` for a missing file.
    """
    ingested = Ingested()
    paths = [(config.eval_path, True), (config.dataset_path, False)]
    located = [(locate_files(path), held_out) for path, held_out in paths if path]
    ingested.not_read = {file: reason for found, _ in located for file, reason in found.not_read.items()}
    audits = Audits.of(config)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.ipc.new_stream(str(folder / ENCODED), SCHEMA, options=options) as stream,
        (folder / REJECTED).open("wb") as quarantine,
        (folder / PROBLEMS).open("w", encoding="utf-8") as problems,
    ):
        for source in [Source(file, held_out) for found, held_out in located for file in found.files]:
            ingested.sources.append(source)
            for items in _chunks(_until_error(source, read_rows(source.file, config.allowed_decisions))):
                encoded = encode_rows([item for item in items if isinstance(item, Row)], encoder, config)
                rows, rejected = _separate(items, encoded.rejected)
                for found, keys in ((ingested.entities, encoded.entities), (ingested.beginnings, encoded.beginnings)):
                    found.append(keys.assign(row=keys["row"] + ingested.rows))
                ingested.facts.append(encoded.facts.assign(held_out_file=source.held_out))
                stream.write_batch(encoded.batch)
                _write_rejected(rejected, quarantine, problems)
                _count(ingested, source, len(encoded.facts), rejected)
                _inspect(ingested, source, rows, audits)
    return ingested


def _until_error(source: Source, items: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
    try:
        yield from items
    except BadFileError as error:
        source.error = str(error)


def _chunks(items: Iterable[Row | Rejected]) -> Iterator[list[Row | Rejected]]:
    """Chunks of ``_CHUNK_ROWS`` lines, or fewer if they are long; the last chunk may be empty."""
    chunk: list[Row | Rejected] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.raw)
        if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _separate(items: Iterable[Row | Rejected], by_position: Mapping[int, Rejected]) -> tuple[list[Row], list[Rejected]]:
    """Usable rows and rejected lines, both in the order of the file.

    ``by_position`` has the rows rejected by ``encode_rows``. Line numbers cannot identify them, since elements of an
    array may share a line.
    """
    positions = itertools.count()
    final = [by_position.get(next(positions), item) if isinstance(item, Row) else item for item in items]
    rows = [item for item in final if isinstance(item, Row)]
    return rows, [item for item in final if isinstance(item, Rejected)]


def _write_rejected(rejected: Iterable[Rejected], quarantine: BinaryIO, problems: TextIO) -> None:
    """Write each rejected line byte for byte; a newline is added where the last line of a file has none."""
    for item in rejected:
        quarantine.write(item.raw if item.raw.endswith(b"\n") or not item.ends else item.raw + b"\n")
        if item.problem:
            problems.write(json.dumps(asdict(item.problem), ensure_ascii=False) + "\n")


def _count(ingested: Ingested, source: Source, rows: int, rejected: Sequence[Rejected]) -> None:
    problems = [item.problem for item in rejected if item.problem]
    ingested.problems += problems[: MAX_KEPT - len(ingested.problems)]
    before = ingested.rows
    source.rows += rows
    source.rejected += len(problems)
    if before // _ROWS_BETWEEN_LOG_LINES != ingested.rows // _ROWS_BETWEEN_LOG_LINES:
        logger.info("Rows: %s read and encoded so far, %s rejected", f"{ingested.rows:,}", f"{source.rejected:,}")


def _inspect(ingested: Ingested, source: Source, rows: Iterable[Row], audits: Audits) -> None:
    """Note format and unknown keys of the rows, and audit their labels and answers."""
    for row in rows:
        source.format = str(row.format)
        ingested.case_fields.add(row.record)
        place = f"{row.file}:{row.line}"
        if len(ingested.unknown_keys) < MAX_KEPT:
            ingested.unknown_keys |= {ascii(key)[1:-1]: place for key in row.unknown_keys} | ingested.unknown_keys
        _audit_label(ingested, place, row.record, audits.label)
        _audit_answer(ingested, place, row.record, audits.answer)


def _audit_label(ingested: Ingested, place: str, record: Record, audit: UserFunction | None) -> None:
    expected = audit.decision(place, record) if audit else None
    label = record["output"]["decision"]
    ingested.audited += expected is not None
    if expected not in (None, label):
        ingested.contradicted += 1
        if len(ingested.contradictions) < MAX_KEPT:
            ingested.contradictions.append(f"{place}: expected {expected} by the rules, got {label}")


def _audit_answer(ingested: Ingested, place: str, record: Record, audit: UserFunction | None) -> None:
    """An audit that fails must do so before the training, not after it; so it judges what the rows expect."""
    problems = audit.problems(place, record, record["output"]) if audit else []
    if problems:
        ingested.bad_answers += 1
        if len(ingested.answer_problems) < MAX_KEPT:
            ingested.answer_problems.append(f"{place}: {problems[0]}")
