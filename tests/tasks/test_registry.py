"""One run per identity, one version per adapter, whatever crashed before. On a real SQLite store."""

import dataclasses
import json
import os
from pathlib import Path

import mlflow
import pytest
from mlflow.entities.model_registry import ModelVersion

from tasks import registry
from tasks.refs import DatasetRef, FolderRef, TrainedRef
from training_core.checkpoints import seal
from training_core.config import RunConfig, SettingsError
from training_core.journal import Point

pytestmark = pytest.mark.slow


def versions(config: RunConfig) -> list[ModelVersion]:
    return registry.connect(config).search_model_versions(f"name = '{config.registered_model_name}'")


def test_an_identity_has_one_run_with_all_parameters_even_when_its_creator_was_killed(
    config: RunConfig, dataset: DatasetRef, tmp_path: Path
) -> None:
    client = registry.connect(config)
    experiment = registry._experiment(client, config)
    bare = client.create_run(experiment, tags={registry.IDENTITY_TAG: "killed"})  # and then the process died
    assert registry.open_tracking_run(config, "killed", dataset, tmp_path) == bare.info.run_id
    later = dataclasses.replace(config, max_eval_rows=7)  # no part of the identity, and parameters never change
    assert registry.open_tracking_run(later, "killed", dataset, tmp_path) == bare.info.run_id
    run = client.get_run(bare.info.run_id)
    assert run.data.params.keys() == dataclasses.asdict(config).keys()
    assert run.data.params["max_eval_rows"] == str(config.max_eval_rows)
    assert {file.path for file in client.list_artifacts(run.info.run_id, "data")} == {
        "data/report.json",
        "data/refused.jsonl",
    }
    assert [given.dataset.digest for given in run.inputs.dataset_inputs] == [dataset.digest[:36]]


def test_a_point_of_the_curve_that_is_sent_twice_is_there_once(config: RunConfig, trained: TrainedRef) -> None:
    points = [Point(step, 3, 1000.0 + step, {"loss": 1.0 / step}) for step in (1, 2, 3)]
    registry.send_points(config, trained.run.tracking_run_id, points[:2])
    registry.send_points(config, trained.run.tracking_run_id, points)
    history = registry.connect(config).get_metric_history(trained.run.tracking_run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_an_adapter_has_one_version_however_often_it_is_registered(config: RunConfig, trained: TrainedRef) -> None:
    assert registry.find_or_create_version(config, trained, "first") == "1"
    assert registry.find_or_create_version(config, trained, "second") == "1"
    (version,) = versions(config)
    assert version.description == "second"
    assert version.tags["sft_flow.adapter_digest"] == trained.adapter.digest


def test_a_model_that_a_killed_process_left_half_uploaded_is_completed(config: RunConfig, trained: TrainedRef) -> None:
    client = registry.connect(config)
    experiment = registry._experiment(client, config)
    tags = {registry.IDENTITY_TAG: trained.run.identity, registry.ADAPTER_TAG: trained.adapter.digest}
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
    registry.connect(config).delete_model_version(config.registered_model_name, number)
    registry.find_or_create_version(config, twin, "")
    (version,) = versions(config)
    assert registry.fetch_version(config, version).adapter.digest == twin.adapter.digest


def test_customers_are_never_answered_shorter_than_the_evaluation_was(config: RunConfig, trained: TrainedRef) -> None:
    registry.find_or_create_version(dataclasses.replace(config, eval_max_new_tokens=8), trained, "")
    (version,) = versions(config)
    served = mlflow.models.Model.load(version.source.removeprefix("file://")).flavors["python_function"]["config"]
    assert served["max_new_tokens"] == config.max_seq_length


def test_of_two_versions_made_at_the_same_moment_the_first_stays(config: RunConfig, trained: TrainedRef) -> None:
    registry._create_version(registry.connect(config), config, trained)
    kept = registry._create_version(registry.connect(config), config, trained)
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
    assert registry.fetch_champion(config, but_not=trained.run.identity) is None


def test_a_champion_whose_files_were_changed_in_the_store_is_refused(config: RunConfig, trained: TrainedRef) -> None:
    version = registry.find_or_create_version(config, trained, "")
    registry.point_alias(config, registry.CHAMPION, version)
    (stored,) = Path(versions(config)[0].source.removeprefix("file://")).rglob("adapter_model.safetensors")
    assert stored.is_relative_to(config.output_dir)
    stored.write_bytes(b"other weights")
    with pytest.raises(SettingsError, match="not those that were registered"):
        registry.fetch_champion(config, but_not="x")


def test_a_champion_that_sft_flow_did_not_register_is_named_with_what_to_do(config: RunConfig) -> None:
    client = registry.connect(config)
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


def test_a_second_evaluation_keeps_the_scores_and_files_of_the_first(config: RunConfig, trained: TrainedRef) -> None:
    client, run_id = registry.connect(config), trained.run.tracking_run_id
    registry.log_results(config, run_id, trained.report)
    scores = Path(trained.report.folder.path) / "scores.json"
    scores.write_text(json.dumps({"candidate": {"accuracy": 0.75}}))
    os.utime(scores, (scores.stat().st_mtime + 60,) * 2)
    again = dataclasses.replace(trained.report, folder=dataclasses.replace(trained.report.folder, digest="f"))
    registry.log_results(config, run_id, again)
    registry.log_results(config, run_id, again)
    assert [found.value for found in client.get_metric_history(run_id, "candidate/accuracy")] == [0.5, 0.75]
    assert client.get_run(run_id).data.metrics["candidate/accuracy"] == 0.75
    assert {file.path for file in client.list_artifacts(run_id, "evaluation")} == {"evaluation/e", "evaluation/f"}
