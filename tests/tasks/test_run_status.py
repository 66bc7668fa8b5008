"""An MLflow run shows whether its training goes on, has failed, and why."""

from dataclasses import replace
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from tasks import run_status
from tasks.refs import DatasetRef, RunRef
from tasks.run_status import REASON_TAG, FolderHeldError, shown_as_failed
from tasks.tracking import connect, open_tracking_run
from tasks.versions import RegistryError
from training_core.config import RunConfig
from training_core.training.gpu_lock import DeviceHeldError, hold_device


@pytest.fixture
def run(config: RunConfig, dataset: DatasetRef, fingerprint: str, tmp_path: Path) -> RunRef:
    return RunRef(fingerprint, str(tmp_path), "", open_tracking_run(config, fingerprint, dataset, tmp_path))


def status(config: RunConfig, run: RunRef) -> str:
    return str(connect(config).get_run(run.tracking_run_id).info.status)


def fail(config: RunConfig, run: RunRef, error: BaseException) -> None:
    with pytest.raises(type(error)), shown_as_failed(config, run):
        raise error


def test_run_of_a_failed_training_says_why_until_it_is_resumed(
    config: RunConfig, run: RunRef, dataset: DatasetRef, fingerprint: str, tmp_path: Path
) -> None:
    assert status(config, run) == "RUNNING"
    fail(config, run, RuntimeError("at https://me:secret@host \x1b[1m"))
    assert status(config, run) == "FAILED"
    reason = connect(config).get_run(run.tracking_run_id).data.tags[REASON_TAG]
    assert reason == "RuntimeError: at https://***@host \\x1b[1m"
    assert open_tracking_run(config, fingerprint, dataset, tmp_path) == run.tracking_run_id
    assert status(config, run) == "RUNNING"


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt(), SystemExit(), FolderHeldError(["locked"])], ids=["ctrl_c", "exit", "lock"]
)
def test_run_that_goes_on_is_not_failed(config: RunConfig, run: RunRef, end: BaseException) -> None:
    """It was interrupted, or another process trains it."""
    fail(config, run, end)
    assert status(config, run) == "RUNNING"


def test_run_whose_gpu_is_held_has_failed(config: RunConfig, run: RunRef) -> None:
    """Both are told by a lock, but only what holds the run's folder trains it."""
    name = f"GPU of {run.path}".replace("/", " ")
    with (
        pytest.raises(DeviceHeldError),
        hold_device(name, "another training"),
        shown_as_failed(config, run),
        hold_device(name, "this training", seconds=0),
    ):
        pass
    assert status(config, run) == "FAILED"


def test_run_that_finished_before_stays_finished(
    config: RunConfig, run: RunRef, dataset: DatasetRef, fingerprint: str, tmp_path: Path
) -> None:
    connect(config).set_terminated(run.tracking_run_id)
    open_tracking_run(config, fingerprint, dataset, tmp_path)
    fail(config, run, RuntimeError("of an evaluation"))
    assert status(config, run) == "FINISHED"


def test_store_that_is_gone_with_its_folder_is_not_made_anew(tmp_path: Path, run: RunRef) -> None:
    gone = tmp_path / "runs"
    with disable_run_logger():
        fail(RunConfig(output_dir=str(gone)), replace(run, path=str(gone / "run")), FileNotFoundError("journal.jsonl"))
    assert not gone.exists()


def test_error_of_the_training_is_seen_though_mlflow_is_away(
    config: RunConfig, run: RunRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise RegistryError("no answer")

    monkeypatch.setattr(run_status, "tag_run", away)
    with disable_run_logger():
        fail(config, run, KeyError("of the training"))
