"""A GPU has one training at a time."""

import threading
import time
from pathlib import Path

import pytest

from training_core.training.gpu_lock import hold_device


@pytest.fixture(autouse=True)
def _locks_in_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_gpu_lock_names_the_training_that_holds_it(tmp_path: Path) -> None:
    with (
        hold_device("GPU 1", Path("/runs/first")),
        pytest.raises(RuntimeError, match=r"GPU 1 is held by the training in /runs/first: .*CUDA_VISIBLE_DEVICES"),
        hold_device("GPU 1", Path("/runs/second"), seconds=0.1),
    ):
        pass
    with (
        hold_device("GPU 1", Path("/b")),
        pytest.raises(RuntimeError, match=r"in /b:"),
        hold_device("GPU 1", Path(), seconds=0.1),
    ):
        pass


def test_gpu_lock_waits_for_a_training_that_ends(tmp_path: Path) -> None:
    started = threading.Event()

    def train() -> None:
        with hold_device("GPU 1", Path("/runs/first")):
            started.set()
            time.sleep(0.3)

    first = threading.Thread(target=train)
    first.start()
    started.wait(20)
    with hold_device("GPU 1", Path("/runs/second"), seconds=20):
        pass
    first.join()


def test_gpu_lock_leaves_other_devices_free(tmp_path: Path) -> None:
    with hold_device("GPU 1", tmp_path), hold_device("GPU 2", tmp_path):
        pass
