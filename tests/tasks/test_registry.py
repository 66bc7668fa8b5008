"""One version per adapter, whatever crashed before, and a champion that can be had. On a real SQLite store."""

import dataclasses
from pathlib import Path

import mlflow
import pytest
from mlflow.entities.model_registry import ModelVersion

from tasks import registry, tracking
from tasks.refs import FolderRef, TrainedRef
from training_core.config import RunConfig, SettingsError
from training_core.folders import seal

pytestmark = pytest.mark.slow


def versions(config: RunConfig) -> list[ModelVersion]:
    return tracking.connect(config).search_model_versions(f"name = '{config.registered_model_name}'")


def test_an_adapter_has_one_version_however_often_it_is_registered(config: RunConfig, trained: TrainedRef) -> None:
    assert registry.find_or_create_version(config, trained, "first") == "1"
    assert registry.find_or_create_version(config, trained, "second") == "1"
    (version,) = versions(config)
    assert version.description == "second"
    assert version.tags["sft_flow.adapter_digest"] == trained.adapter.digest


def test_a_model_that_a_killed_process_left_half_uploaded_is_completed(config: RunConfig, trained: TrainedRef) -> None:
    client = tracking.connect(config)
    experiment = tracking.experiment_id(client, config)
    tags = {tracking.FINGERPRINT_TAG: trained.run.fingerprint, registry.ADAPTER_TAG: trained.adapter.digest}
    half = client.create_logged_model(experiment, "adapter", trained.run.tracking_run_id, tags=tags)
    registry.find_or_create_version(config, trained, "")
    (version,) = versions(config)
    assert version.source == half.artifact_location
    assert client.get_logged_model(half.model_id).status == "READY"


@pytest.fixture
def twin(config: RunConfig, trained: TrainedRef, tmp_path: Path) -> TrainedRef:
    """What another machine has made of the same training: other weights."""
    adapter = tmp_path / "twin" / "adapter"
    config.save(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"almost the same")
    return dataclasses.replace(trained, adapter=FolderRef(str(adapter), None, seal(adapter)))


def test_scores_of_one_adapter_never_describe_the_registered_other(
    config: RunConfig, trained: TrainedRef, twin: TrainedRef
) -> None:
    registry.find_or_create_version(config, trained, "of the first")
    with pytest.raises(ValueError, match="the adapter of another run"):
        registry.find_or_create_version(config, twin, "of the twin")
    assert [version.description for version in versions(config)] == ["of the first"]


def test_a_version_holds_the_adapter_it_names_whatever_was_packaged_before(
    config: RunConfig, trained: TrainedRef, twin: TrainedRef
) -> None:
    number = registry.find_or_create_version(config, trained, "")
    tracking.connect(config).delete_model_version(config.registered_model_name, number)
    registry.find_or_create_version(config, twin, "")
    (version,) = versions(config)
    assert registry.fetch_version(config, version).adapter.digest == twin.adapter.digest


def test_customers_are_never_answered_shorter_than_the_evaluation_was(config: RunConfig, trained: TrainedRef) -> None:
    registry.find_or_create_version(dataclasses.replace(config, eval_max_new_tokens=8), trained, "")
    (version,) = versions(config)
    served = mlflow.models.Model.load(version.source.removeprefix("file://")).flavors["python_function"]["config"]
    assert served["max_new_tokens"] == config.max_seq_length


def test_of_two_versions_made_at_the_same_moment_the_first_stays(config: RunConfig, trained: TrainedRef) -> None:
    registry._create_version(tracking.connect(config), config, trained)
    kept = registry._create_version(tracking.connect(config), config, trained)
    assert [version.version for version in versions(config)] == [kept.version]


def test_without_a_champion_there_is_none(config: RunConfig, trained: TrainedRef) -> None:
    assert registry.fetch_champion(config, but_not="x") is None
    registry.find_or_create_version(config, trained, "")
    assert registry.fetch_champion(config, but_not="x") is None


def test_the_champion_comes_with_the_files_that_were_registered(config: RunConfig, trained: TrainedRef) -> None:
    version = registry.find_or_create_version(config, trained, "")
    registry.point_alias(config, registry.CHAMPION, version)
    champion = registry.fetch_champion(config, but_not="x")
    assert champion
    assert champion.adapter.digest == trained.adapter.digest
    assert (champion.version, champion.run.tracking_run_id) == (version, trained.run.tracking_run_id)
    weights = "adapter_model.safetensors"
    assert (Path(champion.adapter.path) / weights).read_bytes() == (Path(trained.adapter.path) / weights).read_bytes()
    assert registry.fetch_champion(config, but_not=trained.run.fingerprint) is None


def test_a_champion_whose_files_were_changed_in_the_store_is_rejected(config: RunConfig, trained: TrainedRef) -> None:
    version = registry.find_or_create_version(config, trained, "")
    registry.point_alias(config, registry.CHAMPION, version)
    (stored,) = Path(versions(config)[0].source.removeprefix("file://")).rglob("adapter_model.safetensors")
    assert stored.is_relative_to(config.output_dir)
    stored.write_bytes(b"other weights")
    with pytest.raises(SettingsError, match="not those that were registered"):
        registry.fetch_champion(config, but_not="x")


def test_a_champion_that_sft_flow_did_not_register_is_named_with_what_to_do(config: RunConfig) -> None:
    client = tracking.connect(config)
    client.create_registered_model(config.registered_model_name)
    version = client.create_model_version(config.registered_model_name, "somewhere")
    registry.point_alias(config, registry.CHAMPION, version.version)
    with pytest.raises(SettingsError, match=r"champion cannot be had.*lacks the tags.*delete the alias"):
        registry.fetch_champion(config, but_not="x")


def test_a_champion_whose_base_is_gone_is_named_with_what_to_do(
    config: RunConfig, trained: TrainedRef, tmp_path: Path
) -> None:
    registry.point_alias(config, registry.CHAMPION, registry.find_or_create_version(config, trained, ""))
    other = tmp_path / "other"
    (tmp_path / "base").rename(tmp_path / "gone")
    other.mkdir()
    (other / "config.json").touch()
    with pytest.raises(SettingsError, match="is the base model of that version: gone, or changed"):
        registry.fetch_champion(dataclasses.replace(config, model_name=str(other)), but_not="x")


def test_a_version_is_found_by_its_number_and_by_its_alias_and_nothing_by_other_names(
    config: RunConfig, trained: TrainedRef
) -> None:
    number = registry.find_or_create_version(config, trained, "")
    registry.point_alias(config, registry.CANDIDATE, number)
    for name in (number, registry.CANDIDATE):
        found = registry.named_version(config, name)
        assert found and str(found.version) == number
    for name in ("99", "nobody"):
        assert registry.named_version(config, name) is None


def test_the_settings_own_base_serves_a_version_that_names_a_folder_of_another_machine(
    config: RunConfig, trained: TrainedRef, tmp_path: Path
) -> None:
    number = registry.find_or_create_version(config, trained, "")
    moved = (tmp_path / "base").rename(tmp_path / "elsewhere")
    version = registry.named_version(config, number)
    assert version
    assert registry.fetch_version(dataclasses.replace(config, model_name=str(moved)), version).base == str(moved)
