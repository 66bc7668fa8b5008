"""What a training needs before it starts."""

from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from prefect import flow

from tasks import artifact_store, registry, tracking, training, versions
from tasks.artifact_store import publish
from tasks.refs import DatasetRef, RunRef, TrainedRef
from tasks.run_status import FolderHeldError
from tasks.training import open_run
from training_core.config import RunConfig, SettingsError
from training_core.folders import seal, seal_digest


@pytest.fixture
def rows(dataset: DatasetRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetRef:
    """The dataset of another machine, in an artifact store."""
    monkeypatch.setenv(artifact_store.VARIABLE, (tmp_path / "store").as_uri())
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("report.json", "rejected.jsonl"):
        (folder / name).touch()
    seal(folder)
    return replace(dataset, folder=publish(folder))


def opened(config: RunConfig, rows: DatasetRef) -> RunRef:
    @flow
    def opening() -> RunRef:
        return open_run(config, rows)

    return opening()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_open_run_needs_no_tracking_server_on_one_machine(config: RunConfig, rows: DatasetRef) -> None:
    assert Path(opened(config, rows).path).is_relative_to(config.output_dir)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_open_run_reuses_a_registered_adapter(config: RunConfig, rows: DatasetRef, trained: TrainedRef) -> None:
    run = opened(config, rows)
    registry.find_or_create_version(config, replace(trained, run=run), "")
    again = opened(config, rows)
    assert again.fingerprint == run.fingerprint
    assert seal_digest(Path(again.path) / "adapter") == trained.adapter.digest


def test_open_run_rejects_a_champion_that_cannot_be_loaded(config: RunConfig, rows: DatasetRef) -> None:
    client = tracking.connect(config)
    client.create_registered_model(config.registered_model_name)
    by_hand = client.create_model_version(config.registered_model_name, "somewhere")
    versions.point_alias(config, versions.CHAMPION, by_hand.version)
    with pytest.raises(SettingsError, match="cannot load the champion"):
        open_run.fn(config, rows)


def test_training_that_another_process_runs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SECONDS_TO_WAIT", 0.1)
    with (
        FileLock(tmp_path / "training.lock"),
        pytest.raises(FolderHeldError, match=r"another process trains the same rows and settings .* wait for its end"),
    ):
        training._wait_for_other_process(tmp_path)
    training._wait_for_other_process(tmp_path)


def test_open_run_rejects_a_worker_without_shared_servers(
    config: RunConfig, rows: DatasetRef, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, model_name=str(tiny_base))  # its size is read
    for name in (artifact_store.VARIABLE, "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # counts as unset
    monkeypatch.setattr(training, "gpu_problems", lambda gpu_expected: [f"GPU: expected {gpu_expected}"])
    monkeypatch.setattr(training, "compiler_problems", lambda: ["GPU: no compiler"])
    with pytest.raises(SettingsError) as rejected:
        open_run.fn(replace(config, train_on="train-flow/gpu"), replace(rows, base_digest="of other files"))
    assert "has other files on this machine" in str(rejected.value)
    assert "MLFLOW_TRACKING_URI is not set" in str(rejected.value)
    assert f"{artifact_store.VARIABLE} is not set" in str(rejected.value)
    assert "GPU: expected True" in str(rejected.value)
    assert "GPU: no compiler" in str(rejected.value)
