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
    for checkpoint in _by_step(folder):
        if seal_digest(checkpoint):
            latest = checkpoint
            continue
        logger.warning("Deleting checkpoint %s: it is incomplete or damaged", checkpoint.name)
        if checkpoint.is_dir() and not checkpoint.is_symlink():
            shutil.rmtree(checkpoint)
        else:
            checkpoint.unlink()
    return latest


def delete_oldest(folder: Path, keep: int) -> None:
    """Delete all checkpoints but the ``keep`` of the highest steps. Clocks, which can go back, do not matter."""
    for checkpoint in _by_step(folder)[:-keep]:
        shutil.rmtree(checkpoint)


def _by_step(folder: Path) -> list[Path]:
    checkpoints = [path for path in folder.glob("checkpoint-*") if step_of(path) is not None]
    return sorted(checkpoints, key=lambda path: step_of(path) or 0)


def step_of(checkpoint: Path) -> int | None:
    """The optimiser step in the name of a checkpoint folder; ``None`` for any other name."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else None
