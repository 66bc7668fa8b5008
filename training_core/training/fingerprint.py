"""The run fingerprint: trainings with the same one give the same adapter, which is resumed or reused."""

import hashlib
import json

import numpy as np
from datasets import Dataset

from training_core.code_digest import code_digest
from training_core.config import RunConfig

# The fingerprint holds the settings by value, and by digest the base and the token ids of all rows.
_COVERED = [
    *("training_core.config", "training_core.data_loader"),
    *("training_core.rows", "training_core.prompts", "training_core.dataset"),
]


def digest_rows(rows: Dataset) -> str:
    """SHA-256 over token ids and labels in order, which depend on text, template, tokenizer and renderer."""
    digest = hashlib.sha256()
    for row in rows.select_columns(["input_ids", "labels"]).with_format("numpy"):
        for column in ("input_ids", "labels"):
            values = np.ascontiguousarray(row[column], dtype=np.int32)
            digest.update(len(values).to_bytes(8, "little") + values.tobytes())
    return digest.hexdigest()


def run_fingerprint(config: RunConfig, rows_digest: str, base_digest: str) -> str:
    """SHA-256 over everything that determines the weights: settings, rows, base model files, training code."""
    code = code_digest("training_core.trainer", _COVERED)
    parts = [config.training_settings(), rows_digest, base_digest, code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
