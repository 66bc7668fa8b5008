"""Only complete checkpoints are resumed from."""

from pathlib import Path

import pytest

from training_core.folders import MANIFEST, seal
from training_core.training.checkpoints import latest_complete_checkpoint


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
    (tmp_path / "checkpoint-99").write_text("a file")
    checkpoint(tmp_path, 5)
    assert latest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert (tmp_path / name).is_dir()
