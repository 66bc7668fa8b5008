"""A folder of runs that a person moves or copies is used in its new place, and nothing appears in the old one."""

import contextlib
import dataclasses
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service import utils

from tasks import tracking
from tasks.moved_store import follow_move
from tasks.refs import DatasetRef, FolderRef
from training_core.config import RunConfig


@pytest.fixture
def filled(config: RunConfig, dataset: DatasetRef, tmp_path: Path) -> RunConfig:
    """A folder of runs with an MLflow run, a file of it and a registered version."""
    own = dataclasses.replace(config, output_dir=str(tmp_path / "müde runs"))
    rows = dataclasses.replace(dataset, folder=FolderRef(f"{own.output_dir}/datasets/d", None, "d"))
    run_id, client = tracking.open_tracking_run(own, "f", rows, tmp_path), tracking.connect(own)
    client.log_text(run_id, "kept", "note.txt")
    model = client.create_logged_model(tracking.experiment_id(client, own), "adapter", run_id)
    client.create_registered_model("model")
    client.create_model_version("model", model.artifact_location, run_id, model_id=model.model_id)
    return own


def new_process() -> None:
    """Forget, as a new process does, where the artifacts of each run are."""
    utils._artifact_repos_cache.clear()


def run_of(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    return str(client.search_runs([experiment.experiment_id])[0].info.run_id)


def test_moved_folder_is_read_and_written_in_its_new_place(filled: RunConfig, tmp_path: Path) -> None:
    old, new = Path(filled.output_dir), tmp_path / "elsewhere" / "neue runs"
    new.parent.mkdir()
    shutil.move(old, new)
    new_process()
    moved = dataclasses.replace(filled, output_dir=str(new))
    client = tracking.connect(moved)
    run_id = run_of(client)
    assert Path(client.download_artifacts(run_id, "note.txt")).read_text() == "kept"
    client.log_text(run_id, "later", "later.txt")
    assert next(new.rglob("later.txt")).is_relative_to(new / "mlartifacts")
    assert not old.exists()
    source = client.get_model_version("model", "1").source
    assert source.startswith(f"{new.as_uri()}/mlartifacts/")
    assert client.get_model_version_download_uri("model", "1") == source
    assert json.loads(client.get_run(run_id).data.tags[tracking.DATASET_TAG])["folder"]["path"] == f"{new}/datasets/d"


def test_copied_folder_and_its_original_stay_apart(filled: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(filled.output_dir, tmp_path / "copy")
    new_process()
    copy = tracking.connect(dataclasses.replace(filled, output_dir=str(tmp_path / "copy")))
    copy.log_text(run_of(copy), "of the copy", "copy.txt")
    new_process()
    original = tracking.connect(filled)
    assert "copy.txt" not in {file.path for file in original.list_artifacts(run_of(original))}
    assert not list(Path(filled.output_dir).rglob("copy.txt"))


def test_store_that_was_moved_alone_keeps_its_places(filled: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    store = shutil.copy(Path(filled.output_dir) / "mlflow.db", tmp_path / "alone")
    follow_move(Path(store), tracking.DATASET_TAG)
    with contextlib.closing(sqlite3.connect(store)) as database:
        uris = [uri for (uri,) in database.execute("SELECT artifact_uri FROM runs")]
    assert uris and all(uri.startswith(Path(filled.output_dir).as_uri()) for uri in uris)
