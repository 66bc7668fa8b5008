"""Checkpoints that are complete or deleted, and the folder of a finished adapter."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from training_core.config import RunConfig
from training_core.folders import seal, seal_digest
from training_core.utils import log_system_info

logger = logging.getLogger(__name__)

_TRAINED_ON_FILE = "trained_on.npy"


def latest_complete_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step; incomplete ones beside it are deleted, for a resumed training
    would otherwise find them in its way."""
    latest = None
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.is_dir() and step_of(path) is not None]
    for checkpoint in sorted(checkpoints, key=lambda path: step_of(path) or 0):
        if seal_digest(checkpoint):
            latest = checkpoint
        else:
            logger.warning("Checkpoint %s is incomplete or damaged; it is deleted", checkpoint.name)
            shutil.rmtree(checkpoint)
    return latest


def step_of(checkpoint: Path) -> int | None:
    """The optimiser step in the name of a checkpoint folder; ``None`` when the name is of another kind."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerFast, config: RunConfig, trained_on: np.ndarray, folder: Path
) -> str:
    """Write everything that is needed to use and to judge the adapter into a folder, and return the folder's digest.

    Files: the adapter and its configuration, the tokenizer, ``trained_on.npy`` (of ``splits.trained_on``),
    ``run_config.json``, ``system.json``, ``manifest.json``. The folder appears whole or not at all.
    """
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    (draft / "README.md").unlink(missing_ok=True)  # peft's empty model card
    tokenizer.save_pretrained(draft)
    config.save(draft)
    np.save(draft / _TRAINED_ON_FILE, trained_on)
    (draft / "system.json").write_text(json.dumps(log_system_info(), indent=2) + "\n", encoding="utf-8")
    digest = seal(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return digest


def load_trained_on(adapter: Path) -> np.ndarray:
    """The digests of what an adapter was trained on; none, and a warning, where an older version has saved it."""
    file = adapter / _TRAINED_ON_FILE
    if file.is_file():
        return np.load(file)
    logger.warning("%s does not say what it was trained on; held-out rows among that would be scored", adapter)
    return np.empty(0, np.uint64)
