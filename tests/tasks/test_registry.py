"""One run per identity, one version per adapter, whatever crashed before. On a real SQLite store."""

import dataclasses
import json
from pathlib import Path

import pytest
from mlflow.entities.model_registry import ModelVersion

from tasks import registry
from tasks.refs import DatasetRef, EvalReport, FolderRef, ModelVersionRef, RunRef, TrainedRef
from tasks.registration import promote
from training_core.checkpoints import seal
from training_core.config import RunConfig
from training_core.journal import Point
from training_core.model_setup import digest_base_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def config(
    output_dir: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    """Settings with a registered model of this test's own, in one store for all tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    base = tmp_path / "base"
    base.mkdir()
    names = {"registered_model_name": request.node.name, "model_name": str(base)}
    return RunConfig(output_dir=str(output_dir), dataset_path="rows.jsonl", **names)


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetRef:
    for name in ("report.json", "refused.jsonl"):
        (tmp_path / name).touch()
    return DatasetRef(FolderRef(str(tmp_path), None, ""), "d" * 64, 10, 2)


@pytest.fixture
def trained(config: RunConfig, dataset: DatasetRef, tmp_path: Path) -> TrainedRef:
    """An adapter folder and an evaluation folder such as a run leaves behind; the weights do not matter here."""
    adapter, evaluation = tmp_path / "adapter", tmp_path / "evaluation"
    config.save(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(config.registered_model_name.encode())
    evaluation.mkdir()
    (evaluation / "scores.json").write_text(json.dumps({"candidate": {"accuracy": 0.5, "by_group": {}}}))
    identity = config.registered_model_name.ljust(64, "0")
    run_id = registry.open_tracking_run(config, identity, dataset, tmp_path)
    run = RunRef(identity, str(tmp_path), digest_base_model(tmp_path / "base"), run_id)
    report = EvalReport(FolderRef(str(evaluation), None, "e"), 2, {"candidate": 0.5}, {"candidate": 0.0})
    return TrainedRef(run, FolderRef(str(adapter), None, seal(adapter)), report)


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
    tags = {registry.IDENTITY_TAG: trained.run.identity}
    half = client.create_logged_model(experiment, "adapter", trained.run.tracking_run_id, tags=tags)
    registry.find_or_create_version(config, trained, "")
    (version,) = versions(config)
    assert version.source == half.artifact_location
    assert client.get_logged_model(half.model_id).status == "READY"


def test_of_two_versions_made_at_the_same_moment_the_first_stays(config: RunConfig, trained: TrainedRef) -> None:
    registry._create_version(registry.connect(config), config, trained)
    kept = registry._create_version(registry.connect(config), config, trained)
    assert [version.version for version in versions(config)] == [kept.version]


def test_a_champion_that_is_judged_again_stays_champion(config: RunConfig, trained: TrainedRef) -> None:
    number = registry.find_or_create_version(config, trained, "")
    registry.point_alias(config, registry.CHAMPION, number)
    judged = promote.fn(
        config, ModelVersionRef(config.registered_model_name, number, champion=False, verdict=""), trained.report
    )
    assert judged.champion and judged.verdict == "is the champion already"


def test_without_a_champion_there_is_none(config: RunConfig, trained: TrainedRef) -> None:
    assert registry.fetch_champion(config, but_not="x") is None
    registry.find_or_create_version(config, trained, "")
    assert registry.fetch_champion(config, but_not="x") is None


def test_the_champion_comes_with_the_files_that_were_registered(config: RunConfig, trained: TrainedRef) -> None:
    version = registry.find_or_create_version(config, trained, "")
    registry.point_alias(config, registry.CHAMPION, version)
    champion = registry.fetch_champion(config, but_not="x")
    assert champion
    assert champion.digest == trained.adapter.digest
    weights = "adapter_model.safetensors"
    assert (champion.adapter / weights).read_bytes() == (Path(trained.adapter.path) / weights).read_bytes()
    assert registry.fetch_champion(config, but_not=trained.run.identity) is None


def test_a_champion_whose_files_were_changed_in_the_store_is_refused(config: RunConfig, trained: TrainedRef) -> None:
    version = registry.find_or_create_version(config, trained, "")
    registry.point_alias(config, registry.CHAMPION, version)
    (stored,) = Path(versions(config)[0].source.removeprefix("file://")).rglob("adapter_model.safetensors")
    assert stored.is_relative_to(config.output_dir)
    stored.write_bytes(b"other weights")
    with pytest.raises(ValueError, match="not those that were registered"):
        registry.fetch_champion(config, but_not="x")
