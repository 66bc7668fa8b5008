"""Folders that are complete or do not count: a manifest with every file's digest is written last and checked first."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from training_core.config import RunConfig
from training_core.utils import log_system_info

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

_TRAINED_ON_FILE = "trained_on.npy"


def seal(folder: Path) -> str:
    """Declare a folder complete: write its manifest, and return the digest of the manifest."""
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in _content(folder)}
    text = json.dumps(digests, indent=1, sort_keys=True)
    draft = folder / f"{MANIFEST}.draft"
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MANIFEST)
    return hashlib.sha256(text.encode()).hexdigest()


def seal_digest(folder: Path) -> str | None:
    """The digest that ``seal`` returned, or ``None`` when a file is missing or changed since."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    content = manifest.read_bytes()
    try:
        digests = dict(json.loads(content))
    except (ValueError, TypeError):  # cut off, or not a manifest
        return None
    intact = all((folder / name).is_file() and _sha256(folder / name) == digest for name, digest in digests.items())
    return hashlib.sha256(content).hexdigest() if intact and digests else None


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


def _content(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
