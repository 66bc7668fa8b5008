"""One version per adapter, whatever crashed before, and a champion that loads. On a real SQLite store."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from hub_stand_in import NAME, commit_of, hub_with
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.tracking import MlflowClient

from tasks import leftovers, registry, tracking, versions
from tasks.refs import FolderRef, TrainedRef
from training_core.config import RunConfig, SettingsError
from training_core.folders import seal
from training_core.model_setup import digest_base_model, hub_commit
from training_core.training.adapter import LEAKAGE_KEYS_FILE

pytestmark = pytest.mark.slow


def test_version_is_created_once_with_its_first_description(config: RunConfig, trained: TrainedRef) -> None:
    assert registry.find_or_create_version(config, trained, "first") == "1"
    assert registry.find_or_create_version(config, trained, "second") == "1"
    (version,) = versions.all_versions(config)
    assert version.description == "first", "a later evaluation does not overwrite it"
    assert version.tags["sft_flow.adapter_digest"] == trained.adapter.digest


def test_version_half_uploaded_by_a_killed_process_is_completed(config: RunConfig, trained: TrainedRef) -> None:
    client = tracking.connect(config)
    experiment = tracking.experiment_id(client, config)
    tags = {
        tracking.FINGERPRINT_TAG: trained.run.fingerprint,
        versions.ADAPTER_TAG: trained.adapter.digest,
        **versions.serving_tags(config),
        versions.NAME_TAG: config.registered_model_name,
    }
    half = client.create_logged_model(experiment, "adapter", trained.run.tracking_run_id, tags=tags)
    registry.find_or_create_version(config, trained, "")
    (version,) = versions.all_versions(config)
    assert version.source == half.artifact_location
    assert client.get_logged_model(half.model_id).status == "READY"


def test_model_that_is_not_yet_a_version_elsewhere_stays(
    config: RunConfig, trained: TrainedRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one training, under two names, at the same moment."""
    name = f"{config.registered_model_name} elsewhere"
    elsewhere = dataclasses.replace(config, registered_model_name=name, eval_max_new_tokens=6)
    created = registry._create_registered_model

    def overtaken(client: MlflowClient, name: str) -> None:
        monkeypatch.setattr(registry, "_create_registered_model", created)
        registry.find_or_create_version(config, trained, "")
        created(client, name)

    monkeypatch.setattr(registry, "_create_registered_model", overtaken)
    registry.find_or_create_version(elsewhere, trained, "")
    (version,) = versions.all_versions(elsewhere)
    assert registry.fetch_version(elsewhere, version).max_new_tokens == 6


@pytest.fixture
def twin(config: RunConfig, trained: TrainedRef, tmp_path: Path) -> TrainedRef:
    """What another machine has made of the same training: other weights."""
    adapter = tmp_path / "twin" / "adapter"
    config.save(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"almost the same")
    return dataclasses.replace(trained, adapter=FolderRef(str(adapter), None, seal(adapter)))


def test_version_of_another_adapter_keeps_its_description(
    config: RunConfig, trained: TrainedRef, twin: TrainedRef
) -> None:
    registry.find_or_create_version(config, trained, "of the first")
    with pytest.raises(ValueError, match="the adapter of another run"):
        registry.find_or_create_version(config, twin, "of the twin")
    assert [version.description for version in versions.all_versions(config)] == ["of the first"]


def test_version_holds_the_adapter_of_its_digest(config: RunConfig, trained: TrainedRef, twin: TrainedRef) -> None:
    number = registry.find_or_create_version(config, trained, "")
    tracking.connect(config).delete_model_version(config.registered_model_name, number)
    registry.find_or_create_version(config, twin, "")
    (version,) = versions.all_versions(config)
    assert registry.fetch_version(config, version).adapter.digest == twin.adapter.digest


def served_limit(config: RunConfig) -> int:
    (version,) = versions.all_versions(config)
    package = mlflow.models.Model.load(version.source.removeprefix("file://"))
    return int(package.flavors["python_function"]["config"]["max_new_tokens"])


def test_served_answers_have_the_evaluated_limit(config: RunConfig, trained: TrainedRef) -> None:
    short, shorter = (dataclasses.replace(config, eval_max_new_tokens=limit) for limit in (8, 6))
    registry.find_or_create_version(short, trained, "")
    assert served_limit(short) == 8
    with pytest.raises(SettingsError, match="is served with 8, got 6; give --eval_max_new_tokens 8"):
        registry.find_or_create_version(shorter, trained, "")
    elsewhere = dataclasses.replace(shorter, registered_model_name=f"{config.registered_model_name} elsewhere")
    registry.find_or_create_version(elsewhere, trained, "")
    assert (served_limit(elsewhere), served_limit(short)) == (6, 8)
    version = versions.named_version(short, "1")
    assert version and registry.fetch_version(config, version).max_new_tokens == 8


@pytest.fixture
def from_hub(
    config: RunConfig, trained: TrainedRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RunConfig, TrainedRef]]:
    """Settings that name a base on the hub, and a run on its first commit; the hub has a second one by now."""
    commits = [tmp_path / "first", tmp_path / "second"]
    for folder in commits:
        folder.mkdir()
        (folder / "config.json").write_text(f'"{folder.name}"')
    on_hub = dataclasses.replace(config, model_name=NAME, cache_dir=str(tmp_path / "cache"))
    run = dataclasses.replace(trained.run, base_digest=digest_base_model(commits[0]), base_commit=commit_of(0))
    with hub_with(commits, {}, monkeypatch):
        yield on_hub, dataclasses.replace(trained, run=run)


def test_version_is_fetched_with_the_commit_of_its_base(from_hub: tuple[RunConfig, TrainedRef]) -> None:
    """The settings alone would give the newest commit."""
    config, trained = from_hub
    registry.find_or_create_version(config, trained, "")
    (version,) = versions.all_versions(config)
    fetched = registry.fetch_version(config, version)
    assert (fetched.run, hub_commit(Path(fetched.base))) == (
        dataclasses.replace(trained.run, path=fetched.run.path),
        commit_of(0),
    )


def test_base_of_another_digest_names_the_commit_to_set(from_hub: tuple[RunConfig, TrainedRef]) -> None:
    config, trained = from_hub
    assert registry.another_base(config, "new") is None
    registry.find_or_create_version(config, trained, "")
    assert registry.another_base(config, trained.run.base_digest) is None
    assert registry.another_base(dataclasses.replace(config, model_name="other/base"), "new") is None
    said = registry.another_base(config, "new")
    assert said and f"version 1 was trained on files with digest {trained.run.base_digest}, this run on new" in said
    assert said.endswith(f"set model_revision {commit_of(0)}")


def test_version_created_twice_at_once_is_kept_once(config: RunConfig, trained: TrainedRef) -> None:
    registry._create_version(tracking.connect(config), config, trained)
    kept = registry._create_version(tracking.connect(config), config, trained)
    assert [version.version for version in versions.all_versions(config)] == [kept.version]


@pytest.mark.parametrize("status", ["RUNNING", "KILLED"])
def test_run_next_to_that_of_a_version_is_deleted_while_that_is_there(
    status: str, config: RunConfig, trained: TrainedRef
) -> None:
    """Where it is not, the other one may be in use, for another registered model."""
    registry.find_or_create_version(config, trained, "")
    client, experiment = tracking.connect(config), tracking.experiment_id(tracking.connect(config), config)
    other = client.create_run(experiment, tags={tracking.FINGERPRINT_TAG: trained.run.fingerprint}).info.run_id
    client.update_run(other, status=status)
    client.delete_run(trained.run.tracking_run_id)
    leftovers.delete_leftovers(config)
    assert client.get_run(other).info.lifecycle_stage == "active"
    client.restore_run(trained.run.tracking_run_id)
    leftovers.delete_leftovers(config)
    assert client.get_run(other).info.lifecycle_stage == "deleted"


def test_leftovers_that_may_not_be_deleted_end_no_run(
    config: RunConfig, trained: TrainedRef, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry.find_or_create_version(config, trained, "")
    client = tracking.connect(config)
    own = {tracking.FINGERPRINT_TAG: trained.run.fingerprint}
    client.create_run(tracking.experiment_id(client, config), tags=own)

    def refuse(*_: object) -> None:
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "set_terminated", refuse)
    leftovers.delete_leftovers(config)
    assert "was not deleted: Permission denied" in caplog.text


def test_leftovers_that_another_process_deletes_meanwhile_are_no_error(
    config: RunConfig, trained: TrainedRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = registry.find_or_create_version(config, trained, "")
    client, own = tracking.connect(config), {tracking.FINGERPRINT_TAG: trained.run.fingerprint}
    experiment = tracking.experiment_id(client, config)
    client.create_logged_model(experiment, tags={**own, versions.NAME_TAG: config.registered_model_name})
    client.create_run(experiment, tags=own)
    for method in ("delete_logged_model", "set_terminated", "delete_model_version"):
        twice(monkeypatch, method)
    client.create_model_version(config.registered_model_name, str(trained.adapter.path), tags=own)
    leftovers.delete_leftovers(config)
    tagged = f"tags.`{tracking.FINGERPRINT_TAG}` = '{trained.run.fingerprint}'"
    assert [str(version.version) for version in versions.all_versions(config)] == [number]
    assert [run.info.run_id for run in client.search_runs([experiment], tagged)] == [trained.run.tracking_run_id]
    assert len(client.search_logged_models([experiment], tagged)) == 1


def twice(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Let MLflow's client do this after another process has deleted the same thing."""
    original = getattr(MlflowClient, method)

    def overtaken(client: MlflowClient, *given: str) -> None:
        if method == "set_terminated":
            client.delete_run(given[0])
        else:
            original(client, *given)
        original(client, *given)

    monkeypatch.setattr(MlflowClient, method, overtaken)


def test_champion_is_none_before_a_promotion(config: RunConfig, trained: TrainedRef) -> None:
    assert registry.fetch_champion(config, but_not="x") is None
    registry.find_or_create_version(config, trained, "")
    assert registry.fetch_champion(config, but_not="x") is None


def test_champion_is_fetched_with_its_registered_files(config: RunConfig, trained: TrainedRef) -> None:
    version = registry.find_or_create_version(config, trained, "")
    versions.point_alias(config, versions.CHAMPION, version)
    champion = registry.fetch_champion(config, but_not="x")
    assert champion
    assert champion.adapter.digest == trained.adapter.digest
    assert (champion.version, champion.run.tracking_run_id) == (version, trained.run.tracking_run_id)
    weights = "adapter_model.safetensors"
    assert (Path(champion.adapter.path) / weights).read_bytes() == (Path(trained.adapter.path) / weights).read_bytes()
    assert registry.fetch_champion(config, but_not=trained.run.fingerprint) is None


def test_champion_with_changed_files_is_rejected(config: RunConfig, trained: TrainedRef) -> None:
    version = registry.find_or_create_version(config, trained, "")
    versions.point_alias(config, versions.CHAMPION, version)
    (stored,) = Path(versions.all_versions(config)[0].source.removeprefix("file://")).rglob("adapter_model.safetensors")
    assert stored.is_relative_to(config.output_dir)
    stored.write_bytes(b"other weights")
    with pytest.raises(SettingsError, match="not those that were registered"):
        registry.fetch_champion(config, but_not="x")


def test_champion_not_registered_by_sft_flow_names_the_command(config: RunConfig) -> None:
    client = tracking.connect(config)
    client.create_registered_model(config.registered_model_name)
    version = client.create_model_version(config.registered_model_name, "somewhere")
    versions.point_alias(config, versions.CHAMPION, version.version)
    with pytest.raises(
        SettingsError,
        match=r"cannot load the champion.*lacks the tags.*sft-flow rollback .* --to none .*--reason TEXT",
    ):
        registry.fetch_champion(config, but_not="x")


def test_champion_without_its_base_names_the_command(config: RunConfig, trained: TrainedRef, tmp_path: Path) -> None:
    versions.point_alias(config, versions.CHAMPION, registry.find_or_create_version(config, trained, ""))
    other = tmp_path / "other"
    (tmp_path / "base").rename(tmp_path / "gone")
    other.mkdir()
    (other / "config.json").touch()
    with pytest.raises(SettingsError, match="is the base model of that version: gone, or changed"):
        registry.fetch_champion(dataclasses.replace(config, model_name=str(other)), but_not="x")


def test_version_is_found_by_number_and_alias(config: RunConfig, trained: TrainedRef) -> None:
    number = registry.find_or_create_version(config, trained, "")
    versions.point_alias(config, versions.CANDIDATE, number)
    for name in (number, versions.CANDIDATE):
        found = versions.named_version(config, name)
        assert found and str(found.version) == number
    for name in ("99", "unknown"):
        assert versions.named_version(config, name) is None


def test_version_uses_the_base_of_the_settings(config: RunConfig, trained: TrainedRef, tmp_path: Path) -> None:
    number = registry.find_or_create_version(config, trained, "")
    moved = (tmp_path / "base").rename(tmp_path / "elsewhere")
    version = versions.named_version(config, number)
    assert version
    assert registry.fetch_version(dataclasses.replace(config, model_name=str(moved)), version).base == str(moved)


def test_leakage_keys_come_from_the_mlflow_run(config: RunConfig, trained: TrainedRef) -> None:
    run = Path(trained.run.path)
    (run / "leakage_keys.npz").write_bytes(b"keys")
    tracking.log_private_file(config, trained.run, LEAKAGE_KEYS_FILE)
    registry.find_or_create_version(config, trained, "")
    (version,) = versions.all_versions(config)
    fetched = registry.fetch_version(config, version)
    assert (Path(fetched.run.path) / "leakage_keys.npz").read_bytes() == b"keys"
    package = Path(version.source.removeprefix("file://"))
    assert not [path for path in package.rglob("*") if path.name.startswith("leakage")]


def test_champion_of_a_deleted_run_is_fetched(config: RunConfig, trained: TrainedRef) -> None:
    (Path(trained.run.path) / "leakage_keys.npz").write_bytes(b"keys")
    tracking.log_private_file(config, trained.run, LEAKAGE_KEYS_FILE)
    versions.point_alias(config, versions.CHAMPION, registry.find_or_create_version(config, trained, ""))
    tracking.connect(config).delete_run(trained.run.tracking_run_id)
    champion = registry.fetch_champion(config, but_not="x")
    assert champion and (Path(champion.run.path) / "leakage_keys.npz").is_file()


def test_champion_whose_files_are_gone_names_their_place(config: RunConfig, trained: TrainedRef) -> None:
    number = registry.find_or_create_version(config, trained, "")
    versions.point_alias(config, versions.CHAMPION, number)
    place = Path(versions.all_versions(config)[0].source.removeprefix("file://")) / "artifacts"
    place.rename(place.with_name("elsewhere"))
    with pytest.raises(SettingsError, match=f"were in {place}/adapter, which is not there; put them back.*rollback"):
        registry.fetch_champion(config, but_not="")
    with pytest.raises(SettingsError, match=f"were in {place}/adapter"):
        registry.fetch_version(config, versions.all_versions(config)[0])
    assert not place.exists()
