"""Only complete checkpoints are resumed from."""

import os
from pathlib import Path

import pytest

from training_core.folders import MANIFEST, seal
from training_core.training.checkpoints import delete_oldest, latest_complete_checkpoint


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights.bin").write_bytes(b"w" * step)
    if complete:
        seal(path)
    return path


def test_latest_checkpoint_is_that_of_the_highest_step(tmp_path: Path) -> None:
    assert latest_complete_checkpoint(tmp_path) is None
    assert latest_complete_checkpoint(tmp_path / "nowhere") is None
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    assert latest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert len(list(tmp_path.iterdir())) == 3


def test_incomplete_checkpoints_are_deleted(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-15" / "weights.bin").write_bytes(b"")
    checkpoint(tmp_path, 20, complete=False)
    (tmp_path / "checkpoint-25").mkdir()
    checkpoint(tmp_path, 30)
    (tmp_path / "checkpoint-30" / MANIFEST).write_bytes(b"\x00" * 99)
    assert latest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]


@pytest.mark.parametrize("name", ["checkpoint-best", "checkpoint-10.bak"])
def test_checkpoint_search_ignores_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    checkpoint(tmp_path, 5)
    assert latest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert (tmp_path / name).is_dir()


def test_file_in_the_place_of_a_checkpoint_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-12").write_text("a file")
    (tmp_path / "checkpoint-13").symlink_to("nowhere")
    assert latest_complete_checkpoint(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_oldest_checkpoints_are_those_of_the_lowest_steps(tmp_path: Path) -> None:
    """Whatever the clock says: a checkpoint of another clock may seem to come from the future."""
    for step in (100, 5, 20, 9):
        os.utime(checkpoint(tmp_path, step), (4e9 - step, 4e9 - step))
    delete_oldest(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-20"]
    delete_oldest(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 2
