"""What cannot be evaluated again is known before anything is loaded."""

from dataclasses import replace

import pytest

from tasks import registration, registry, tracking, versions
from tasks.refs import DatasetRef, TrainedRef
from tasks.registration import fetch_registered, record_evaluation
from training_core.config import RunConfig, SettingsError

pytestmark = pytest.mark.slow


@pytest.fixture
def number(config: RunConfig, trained: TrainedRef) -> str:
    """That of a registered version."""
    return registry.find_or_create_version(config, trained, "")


def test_fetched_version_has_its_registered_adapter(
    config: RunConfig, dataset: DatasetRef, trained: TrainedRef, number: str
) -> None:
    assert fetch_registered.fn(config, number, dataset).adapter.digest == trained.adapter.digest


def test_fetched_version_that_is_missing_names_the_command(config: RunConfig, dataset: DatasetRef) -> None:
    with pytest.raises(SettingsError, match="no version or alias 'candidate'; see what is there: sft-flow versions"):
        fetch_registered.fn(config, "candidate", dataset)


def test_fetched_version_of_another_base_names_the_setting(config: RunConfig, dataset: DatasetRef, number: str) -> None:
    with pytest.raises(SettingsError, match=f"give --model_name {config.model_name}"):
        fetch_registered.fn(config, number, replace(dataset, base_digest="of another"))


def test_fetched_version_served_with_another_limit_names_the_setting(
    config: RunConfig, dataset: DatasetRef, number: str
) -> None:
    with pytest.raises(SettingsError, match="got 9; give --eval_max_new_tokens 512"):
        fetch_registered.fn(replace(config, eval_max_new_tokens=9), number, dataset)


def test_fetched_version_of_a_deleted_run_names_the_command(
    config: RunConfig, dataset: DatasetRef, trained: TrainedRef, number: str
) -> None:
    tracking.connect(config).delete_run(trained.run.tracking_run_id)
    with pytest.raises(SettingsError, match=f"mlflow runs restore --run-id {trained.run.tracking_run_id}"):
        fetch_registered.fn(config, number, dataset)


def test_later_evaluation_keeps_the_first_description(
    config: RunConfig, trained: TrainedRef, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.connect(config).update_model_version(config.registered_model_name, number, "46.5%, 127 rows")
    monkeypatch.setattr(registration, "describe_version", lambda trained: "38.5%, 13 rows")
    monkeypatch.setattr(registration, "open_folder", lambda folder, _: folder.path)
    assert record_evaluation.fn(config, trained).version == number
    found = versions.named_version(config, number)
    assert found and found.description == "46.5%, 127 rows"
