"""A GPU has one user at a time."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest
import torch

from tasks import certificates, exports, judged_answers, prediction, side_by_side
from training_core import child_processes
from training_core.config import RunConfig, SettingsError
from training_core.training import gpu_lock
from training_core.training.gpu_lock import hold_device, sole_use_of_gpu


@pytest.fixture(autouse=True)
def _locks_in_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_gpu_lock_names_the_training_that_holds_it(tmp_path: Path) -> None:
    with (
        hold_device("GPU 1", "the training in /runs/first"),
        pytest.raises(RuntimeError, match=r"GPU 1 is held by the training in /runs/first: .*CUDA_VISIBLE_DEVICES"),
        hold_device("GPU 1", "the training in /runs/second", seconds=0.1),
    ):
        pass
    with (
        hold_device("GPU 1", "the training in /b"),
        pytest.raises(RuntimeError, match=r"in /b:"),
        hold_device("GPU 1", "another", seconds=0.1),
    ):
        pass


def test_gpu_lock_waits_for_a_training_that_ends(tmp_path: Path) -> None:
    started = threading.Event()

    def train() -> None:
        with hold_device("GPU 1", "the training in /runs/first"):
            started.set()
            time.sleep(0.3)

    first = threading.Thread(target=train)
    first.start()
    started.wait(20)
    with hold_device("GPU 1", "the training in /runs/second", seconds=20):
        pass
    first.join()


def test_gpu_lock_outlasts_a_training_whose_parent_was_killed() -> None:
    assert gpu_lock.SECONDS_TO_WAIT > child_processes.POLL_SECONDS + child_processes.SECONDS_TO_END


def test_gpu_lock_leaves_other_devices_free() -> None:
    with hold_device("GPU 1", "one"), hold_device("GPU 2", "another"):
        pass


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("Tried to allocate 2 GiB. More"), gpu_lock.DeviceHeldError()])
def test_gpu_that_cannot_be_used_ends_commands_with_two(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    with pytest.raises(SettingsError), sole_use_of_gpu("this"):
        raise error


def test_certify_export_predict_and_compare_hold_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loads models: next to a training, one of the two would run out of memory."""

    def held(*_: object) -> None:
        raise gpu_lock.DeviceHeldError("GPU 1 is held by the training in /runs/first")

    monkeypatch.setattr(gpu_lock, "hold_gpu", held)
    config, loads = RunConfig(), Mock()
    for module in (exports, side_by_side):
        for name in ("fetch_registered", "registered_settings", "served_settings"):
            monkeypatch.setattr(module, name, Mock())
    for name in ("_source", "replace", "registered_dataset", "open_folder", "load_training_data", "formats"):
        monkeypatch.setattr(exports, name, MagicMock())
    monkeypatch.setattr(exports, "_evaluation", Mock())
    monkeypatch.setattr(exports, "write_judged", loads)
    monkeypatch.setattr(side_by_side, "_data", Mock())
    monkeypatch.setattr(side_by_side, "_load", loads)
    monkeypatch.setattr(prediction, "write_answers", loads)
    monkeypatch.setattr(judged_answers, "fetch_registered", loads)
    commands: list[Callable[[], object]] = [
        lambda: exports.export_version(config, "1", Mock(), Path("out")),
        lambda: side_by_side.compare_registered([(config, "1"), (config, "2")], None),
        lambda: prediction.run_job(Mock(**{"answerer.config.eval_batch_size": 4}), Mock()),
        lambda: judged_answers.judge_version(config, "1", None, None),
        lambda: certificates.certify_endpoint(Mock(), Mock(), "", {}),
        lambda: certificates.certify_folder(Mock(), Path()),
    ]
    for command in commands:
        with pytest.raises(SettingsError, match="held by the training in /runs/first"):
            command()
    assert not loads.called
