"""Short rows, files of them, and the datasets built from such files, for the tests of the data stage."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from training_core.config import RunConfig
from training_core.data_loader import build_datasets
from training_core.dataset.encoding import IGNORED_LABEL
from training_core.dataset.ingest import REJECTED
from training_core.dataset.report import DataReport, Finding
from training_core.dataset.store import HELD_OUT_FILE, LEAKAGE_KEYS_FILE, TRAIN_FILE

Record = dict[str, Any]


def record(case: Record | None = None, output: Record | None = None, **more: Any) -> Record:
    """A short row; equal arguments give equal rows."""
    return {
        "instruction": "Decide this case.",
        "input": {"case_id": "A-1", "issue_type": "return", **(case or {}), "policy_document": "Within 30 days."},
        "output": {"decision": "Eligible", "reason": "Day 3.", "customer_response": "Yes.", "next_action": "Refund"}
        | (output or {}),
    } | more


def records(count: int, start: int = 0) -> list[Record]:
    return [record({"case_id": f"A-{i}"}) for i in range(start, start + count)]


def with_policy(row: Record, policy: str) -> Record:
    return row | {"input": row["input"] | {"policy_document": policy}}


def to_line(row: Record | bytes) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()


def write(path: Path, rows: Sequence[Record | bytes]) -> str:
    path.write_bytes(b"".join(to_line(row) + b"\n" for row in rows))
    return str(path)


class Built(NamedTuple):
    """What ``build_datasets`` wrote: both splits, the report, the rejected lines and the leakage keys."""

    train: Dataset
    held_out: Dataset
    report: DataReport
    rejected: bytes
    leakage_keys: np.ndarray

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [*self.train, *self.held_out]

    @property
    def lines(self) -> tuple[set[int], set[int]]:
        """The line numbers of the trained and of the held-out rows."""
        return set(self.train["line"]), set(self.held_out["line"])

    def finding(self, subject: str) -> Finding | None:
        return next((finding for finding in self.report.findings if finding.subject == subject), None)


def build(path: Path | str, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> Built:
    defaults = {"max_seq_length": 4096, "val_split": 0.3, "max_refused_share": 1.0, "packing": False}
    config = RunConfig(dataset_path=str(path), **defaults | settings)
    folder = Path(tempfile.mkdtemp(prefix="built-", dir=Path(path).parent))
    report = build_datasets(config, tokenizer, folder)
    train, held_out = (Dataset.from_file(str(folder / name)) for name in (TRAIN_FILE, HELD_OUT_FILE))
    return Built(train, held_out, report, (folder / REJECTED).read_bytes(), np.load(folder / LEAKAGE_KEYS_FILE))


def answer_ids(row: Record) -> list[int]:
    return [label for label in row["labels"] if label != IGNORED_LABEL]
