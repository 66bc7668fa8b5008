"""What a training needs before it begins."""

from dataclasses import replace
from pathlib import Path

import pytest
from prefect import flow

from tasks import store
from tasks.refs import DatasetRef, RunRef
from tasks.store import publish
from tasks.training import open_run
from training_core.checkpoints import seal
from training_core.config import RunConfig, SettingsError


@pytest.fixture
def rows(dataset: DatasetRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetRef:
    """Rows of another machine, in a store."""
    monkeypatch.setenv(store.VARIABLE, (tmp_path / "store").as_uri())
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("report.json", "refused.jsonl"):
        (folder / name).touch()
    seal(folder)
    return replace(dataset, folder=publish(folder))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_one_machine_needs_no_tracking_server_beside_its_store(config: RunConfig, rows: DatasetRef) -> None:
    @flow
    def opening() -> RunRef:
        return open_run(config, rows)

    assert Path(opening().path).is_relative_to(config.output_dir)


def test_a_worker_without_the_places_where_all_meet_trains_nothing(
    config: RunConfig, rows: DatasetRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(store.VARIABLE)
    with pytest.raises(SettingsError) as refused:
        open_run.fn(replace(config, train_on="train-flow/gpu"), rows)
    assert "MLFLOW_TRACKING_URI is not set" in str(refused.value)
    assert f"{store.VARIABLE} is not set" in str(refused.value)
