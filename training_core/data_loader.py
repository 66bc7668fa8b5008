"""From files of rows to token ids: every line ends in exactly one account, whatever the number of lines."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset
from filelock import FileLock
from transformers import PreTrainedTokenizerFast

from training_core.code_digest import code_digest, function_files
from training_core.config import RunConfig
from training_core.dataset.encoding import SCHEMA, TRAIN_SCHEMA
from training_core.dataset.findings import report_on
from training_core.dataset.ingest import ENCODED, ingest_rows
from training_core.dataset.page import render_page
from training_core.dataset.report import DataReport
from training_core.dataset.splits import HELD_OUT, TRAINED, assign_splits, overlapping, training_leakage_keys
from training_core.dataset.store import HELD_OUT_FILE, LEAKAGE_KEYS_FILE, PAGE_FILE, REPORT_FILE, TRAIN_FILE
from training_core.dataset.tables import verdict
from training_core.folders import complete_folder, seal_digest
from training_core.model_setup import SMALL_FILES, load_tokenizer
from training_core.packing.plan import pack_limits, plan_packing
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.messages import build_assistant_message as build_assistant_message
from training_core.prompts.messages import build_user_message as build_user_message
from training_core.prompts.messages import format_as_chat as format_as_chat
from training_core.rows.files import digest_files
from training_core.rows.reader import Rejected, Row, read_rows
from training_core.rows.strict_json import DataError

logger = logging.getLogger(__name__)

_ROWS_FOR_PACKING = 20_000
_SETTINGS = (
    *("dataset_path", "eval_path", "val_split", "entity_fields", "overlap", "split_seed", "max_seq_length", "overlong"),
    *("allowed_decisions", "max_refused_share", "label_audit", "group_by"),
    *(
        "max_eval_rows",
        "min_eval_rows",
        "eval_max_new_tokens",
        "slice_fields",
    ),  # what the report says beforehand about the evaluation
    *(
        "packing",
        "seed",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ),  # the gain that the report expects
)


@dataclass(frozen=True)
class LoadedRows:
    """What a file holds: its usable rows and its rejected lines, each in the order of the file."""

    rows: list[Row]
    rejected: list[Rejected]


def load_jsonl(path: Path | str) -> LoadedRows:
    """The rows of a file in any container and any shape: JSONL, a JSON array or Parquet, also packed, as records.

    For a look at a file: all of it is held in memory. Blank lines count nowhere. Raises ``OSError`` when there is none.
    """
    items = list(read_rows(str(path)))
    rows = [item for item in items if isinstance(item, Row)]
    return LoadedRows(rows, [item for item in items if isinstance(item, Rejected)])


def build_datasets(config: RunConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> DataReport:
    """Read, check, encode and split the rows of a run, a few at a time; of each only facts are kept, about 100 bytes.

    Measured on 2026-11-23: 1,000,000 rows of about 940 tokens take 378 CPU seconds and 1.31 GiB at the peak.

    Writes into ``folder``: ``train.arrow`` and ``held_out.arrow`` (columns of ``TrainingData``), ``leakage_keys.npy``
    (of ``splits.training_leakage_keys``), ``rejected.jsonl`` (the rejected lines, byte for byte), ``problems.jsonl``
    (why), ``report.json``, and the same as a page, ``report.html``. Rows that are not fit to train on are written
    too; the report's ``failures`` say so.
    """
    ingested = ingest_rows(config, ChatEncoder.of(tokenizer), folder)
    facts, entities = _joined(ingested.facts), _joined(ingested.entities)
    facts["overlap"] = overlapping(facts, entities)
    facts["split"] = assign_splits(config, facts, entities)
    _write_splits(folder, facts["split"].to_numpy())
    np.save(folder / LEAKAGE_KEYS_FILE, training_leakage_keys(facts, entities))
    report = report_on(config, ingested, facts, _expected_packing(config, folder))
    report.save(folder / REPORT_FILE)
    (folder / PAGE_FILE).write_text(render_page(report), encoding="utf-8")
    logger.info("Rows: %s", verdict(report))
    return report


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of all parts, which are let go: they are as large again."""
    table = pd.concat(parts, ignore_index=True)
    parts.clear()
    return table


def _write_splits(folder: Path, splits: np.ndarray) -> None:
    """Sort the encoded rows into those to train on and those held out, and drop the rest."""
    with (
        pa.ipc.open_stream(pa.OSFile(str(folder / ENCODED))) as encoded,
        pa.ipc.new_stream(str(folder / TRAIN_FILE), TRAIN_SCHEMA) as train,
        pa.ipc.new_stream(str(folder / HELD_OUT_FILE), SCHEMA) as held_out,
    ):
        start = 0
        for batch in encoded:
            split = splits[start : start + batch.num_rows]
            train.write_batch(batch.select(TRAIN_SCHEMA.names).filter(pa.array(split == TRAINED)))
            held_out.write_batch(batch.filter(pa.array(split == HELD_OUT)))
            start += batch.num_rows
    (folder / ENCODED).unlink()


def _expected_packing(config: RunConfig, folder: Path) -> str:
    """What sharing policies will save, reckoned from the first rows where there are many."""
    rows = Dataset.from_file(str(folder / TRAIN_FILE))
    if not config.packing or not len(rows):
        return ""
    first = rows.select(range(min(len(rows), _ROWS_FOR_PACKING)))
    reason = plan_packing(first, *pack_limits(config), config.seed).reason
    return reason if len(first) == len(rows) else f"{reason} (reckoned from the first {len(first):,} rows)"


def prepare_data(config: RunConfig, base: Path) -> Path:
    """The folder of a run's rows, encoded by the base's tokenizer and reported on: made now, or found.

    Raises ``OSError`` when the rows cannot be found, and ``DataError`` when they change meanwhile. Whether they are fit
    to train on, the report says.
    """
    key = data_key(config, base)
    folder = Path(config.output_dir).resolve() / "datasets" / key[:12]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if seal_digest(folder):
            logger.info("Rows reused: nothing they are made from has changed since %s was written", folder)
            return folder
        with complete_folder(folder) as draft:
            build_datasets(config, load_tokenizer(base), draft)
            if data_key(config, base) != key:
                raise DataError("The rows changed while they were read; run again when they are written")
    return folder


def data_key(config: RunConfig, base: Path) -> str:
    """SHA-256 over all that encoded rows are made from: files, settings, tokenizer, and the code that makes them."""
    sources = [digest_files(path) for path in (config.dataset_path, config.eval_path) if path]
    small_files = {path for pattern in SMALL_FILES for path in base.glob(pattern)}
    tokenizer = [path.read_bytes() for path in sorted(small_files)]
    code = [code_digest("training_core.data_loader", without=["training_core.config"]).encode()]
    code += [path.read_bytes() for path in function_files(config.label_audit)] if config.label_audit else []
    settings = repr({name: getattr(config, name) for name in _SETTINGS}).encode()
    digests = [hashlib.sha256(part).digest() for part in (*sources, *tokenizer, *code, settings)]
    return hashlib.sha256(b"".join(digests)).hexdigest()
