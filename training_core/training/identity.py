"""Who a training is: the same identity is the same adapter, to be resumed or reused, never trained twice."""

import hashlib
import json
from pathlib import Path

import numpy as np
from datasets import Dataset

from training_core.config import RunConfig

_TRAINING_CODE = ("packing/batches.py", "model_setup.py", "packing/plan.py", "packing/attention.py", "trainer.py")


def digest_rows(rows: Dataset) -> str:
    """SHA-256 over token ids and labels in their order: text, template, tokenizer and renderer all show in it."""
    digest = hashlib.sha256()
    for row in rows.select_columns(["input_ids", "labels"]).with_format("numpy"):
        for column in ("input_ids", "labels"):
            values = np.ascontiguousarray(row[column], dtype=np.int32)
            digest.update(len(values).to_bytes(8, "little") + values.tobytes())
    return digest.hexdigest()


def training_identity(config: RunConfig, rows_digest: str, base_digest: str) -> str:
    """SHA-256 over everything that shapes the weights: settings, rows, base model files, training code."""
    code = "".join(
        hashlib.sha256((Path(__file__).parents[1] / name).read_bytes()).hexdigest() for name in _TRAINING_CODE
    )
    parts = [config.training_settings(), rows_digest, base_digest, code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
