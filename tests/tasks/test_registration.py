"""What cannot be judged again is known before anything is loaded."""

from dataclasses import replace

import pytest

from tasks import registry, tracking
from tasks.refs import DatasetRef, TrainedRef
from tasks.registration import fetch_registered
from training_core.config import RunConfig, SettingsError

pytestmark = pytest.mark.slow


@pytest.fixture
def number(config: RunConfig, trained: TrainedRef) -> str:
    """That of a registered version."""
    return registry.find_or_create_version(config, trained, "")


def test_a_version_comes_with_the_adapter_that_was_registered(
    config: RunConfig, dataset: DatasetRef, trained: TrainedRef, number: str
) -> None:
    assert fetch_registered.fn(config, number, dataset).adapter.digest == trained.adapter.digest


def test_a_version_that_is_not_there_is_named(config: RunConfig, dataset: DatasetRef) -> None:
    with pytest.raises(SettingsError, match="no version or alias 'candidate'"):
        fetch_registered.fn(config, "candidate", dataset)


def test_rows_encoded_for_another_base_are_rejected_with_the_base_to_give(
    config: RunConfig, dataset: DatasetRef, number: str
) -> None:
    with pytest.raises(SettingsError, match=f"give --model_name {config.model_name}"):
        fetch_registered.fn(config, number, replace(dataset, base_digest="of another"))


def test_a_version_whose_tracking_run_was_deleted_is_rejected_with_how_to_bring_it_back(
    config: RunConfig, dataset: DatasetRef, trained: TrainedRef, number: str
) -> None:
    tracking.connect(config).delete_run(trained.run.tracking_run_id)
    with pytest.raises(SettingsError, match=f"mlflow runs restore --run-id {trained.run.tracking_run_id}"):
        fetch_registered.fn(config, number, dataset)
