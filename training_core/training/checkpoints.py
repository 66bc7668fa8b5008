"""Checkpoints: the latest complete one; incomplete ones are deleted."""

import logging
import shutil
from pathlib import Path

from training_core.folders import seal_digest

logger = logging.getLogger(__name__)


def latest_complete_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step. Incomplete ones are deleted, so that a resumed training can write
    the checkpoints of their steps again."""
    latest = None
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.is_dir() and step_of(path) is not None]
    for checkpoint in sorted(checkpoints, key=lambda path: step_of(path) or 0):
        if seal_digest(checkpoint):
            latest = checkpoint
        else:
            logger.warning("Deleting checkpoint %s: it is incomplete or damaged", checkpoint.name)
            shutil.rmtree(checkpoint)
    return latest


def step_of(checkpoint: Path) -> int | None:
    """The optimiser step in the name of a checkpoint folder; ``None`` for any other name."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None
