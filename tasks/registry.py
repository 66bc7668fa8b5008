"""Adapters in MLflow's model registry: each is registered once, and fetched as it was registered."""

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow
from huggingface_hub.errors import RevisionNotFoundError
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient

from tasks.commands import registry_command
from tasks.create_once import found_or_created
from tasks.ledger import read_ledger
from tasks.leftovers import delete_leftovers
from tasks.model_package import package_adapter
from tasks.moved_store import local_path
from tasks.refs import FolderRef, RegisteredRef, RunRef, TrainedRef
from tasks.tracking import (
    BASE_COMMIT_TAG,
    FINGERPRINT_TAG,
    connect,
    experiment_id,
    fetch_private_file,
    tracking_uri,
)
from tasks.versions import (
    ADAPTER_TAG,
    CHAMPION,
    CONFIDENCE_TAG,
    LIMIT_TAG,
    NAME_TAG,
    all_versions,
    delete_version,
    find_champion,
    find_version,
    named_version,
    require_served_settings,
    served_with,
    serving_tags,
    versions_of,
)
from training_core.base_model import base_folder
from training_core.config import RunConfig, SettingsError
from training_core.evaluation.handover import load_handover
from training_core.folders import seal_digest
from training_core.model_setup import digest_base_model, fetch_base_model
from training_core.training.adapter import LEAKAGE_KEYS_FILE

_BASE_TAG, _BASE_DIGEST_TAG = "sft_flow.base_model", "sft_flow.base_digest"
_LONGEST_DESCRIPTION = 5000  # of PostgreSQL; SQLite takes any


def find_or_create_version(config: RunConfig, trained: TrainedRef, description: str) -> str:
    """The number of the one registered version of this training; creates it, once, whatever crashed before.

    The description is that of its first evaluation; later ones are in the ledger and in the MLflow run. Raises
    ``ValueError`` when that version holds another adapter: its scores are not those of this one.
    """
    client, run = connect(config), trained.run
    version = find_version(config, run.fingerprint) or _create_version(client, config, trained)
    delete_leftovers(config)
    if version.tags[ADAPTER_TAG] != trained.adapter.digest:
        what = f"{version.name} version {version.version} holds the adapter of another run that trained the same"
        raise ValueError(f"{what}; start a new run: it evaluates that one, and trains nothing")
    require_served_settings(config, version)
    if not version.description:
        client.update_model_version(config.registered_model_name, version.version, description[:_LONGEST_DESCRIPTION])
    return str(version.version)


def fetch_champion(config: RunConfig, but_not: str) -> RegisteredRef | None:
    """The adapter that answers customers now, unless its fingerprint is ``but_not``.

    Raises ``SettingsError`` when it cannot be loaded: no candidate can then be compared with it.
    """
    version = find_champion(config, read_ledger(config))
    if version is None or version.tags.get(FINGERPRINT_TAG) == but_not:
        return None
    try:
        return _fetch(config, version)
    except ValueError as error:
        back, none = (
            registry_command(config, "rollback", version.name, *to, with_reason=True) for to in ([], ["--to", "none"])
        )
        fix = f"return to the version before it: {back} or to no champion: {none}"
        raise SettingsError([f"registered_model_name: cannot load the champion: {error}; {fix}"]) from error


def fetch_version(config: RunConfig, version: ModelVersion) -> RegisteredRef:
    """A version's files on this machine, checked against the digests it was registered with.

    Raises ``SettingsError`` when sft-flow did not register it, when the registry's files are gone or not those that
    were registered, or when its base is nowhere to be found.
    """
    try:
        return _fetch(config, version)
    except ValueError as error:
        raise SettingsError([f"registered_model_name: {error}"]) from error


def _fetch(config: RunConfig, version: ModelVersion) -> RegisteredRef:
    missing = {FINGERPRINT_TAG, ADAPTER_TAG, LIMIT_TAG, _BASE_TAG, _BASE_DIGEST_TAG} - version.tags.keys()
    if missing:
        raise ValueError(f"{version.name} version {version.version} lacks the tags {', '.join(sorted(missing))}")
    folder = Path(config.output_dir).resolve() / "registered" / f"{version.name}-{version.version}"
    adapter, digest = folder / "adapter", version.tags[ADAPTER_TAG]
    if seal_digest(adapter) != digest:
        packaged = f"{version.source}/artifacts/adapter"
        _require_files(version, local_path(packaged))
        folder.mkdir(parents=True, exist_ok=True)
        mlflow.artifacts.download_artifacts(packaged, dst_path=str(folder), tracking_uri=tracking_uri(config))
    if seal_digest(adapter) != digest:
        raise ValueError(f"the files of {version.name} version {version.version} are not those that were registered")
    base_digest = version.tags[_BASE_DIGEST_TAG]
    commit = version.tags.get(BASE_COMMIT_TAG)
    run = RunRef(version.tags[FINGERPRINT_TAG], str(folder), base_digest, version.run_id, commit)
    fetch_private_file(config, run, LEAKAGE_KEYS_FILE)
    base = _find_base(config, version.tags[_BASE_TAG], commit, base_digest)
    return RegisteredRef(
        version=str(version.version),
        run=run,
        adapter=FolderRef(str(adapter), None, digest),
        base=str(base),
        **served_with(version),
    )


def _require_files(version: ModelVersion, place: Path | None) -> None:
    """MLflow tries for minutes to read a folder that is gone."""
    if place and not place.is_dir():
        what = f"the files of {version.name} version {version.version} were in {place}, which is not there"
        raise ValueError(f"{what}; put them back, or move the whole output_dir: it is found in its new place")


def another_base(config: RunConfig, digest: str) -> str | None:
    """The sentence on the champion, or else the newest version, if its base has the same name and other files."""
    named = [version for version in all_versions(config) if version.tags.get(_BASE_TAG) == _base_name(config)]
    for version in filter(None, [named_version(config, CHAMPION), *named[-1:]]):
        before = version.tags.get(_BASE_DIGEST_TAG)
        if version.tags.get(_BASE_TAG) == _base_name(config) and before != digest:
            commit = version.tags.get(BASE_COMMIT_TAG)
            fix = f"; for the same files set model_revision {commit}" if commit else ""
            then = f"version {version.version} was trained on files with digest {before}"
            return f"The base {config.model_name} is not what it was: {then}, this run on {digest}{fix}"
    return None


def _find_base(config: RunConfig, name: str, commit: str | None, digest: str) -> Path:
    """The base of this digest: the settings' own, or the one of that name; a folder's name may be another machine's."""
    for candidate, revision in dict.fromkeys(((config.model_name, config.model_revision), (name, commit))):
        with contextlib.suppress(ValueError, RevisionNotFoundError):  # no folder any more, and nothing on the hub
            base = fetch_base_model(candidate, config.cache_dir, revision)
            if digest_base_model(base) == digest:
                return base
    raise ValueError(f"neither {config.model_name} nor {name} is the base model of that version: gone, or changed")


def _create_version(client: MlflowClient, config: RunConfig, trained: TrainedRef) -> ModelVersion:
    name, run = config.registered_model_name, trained.run
    model = _find_or_log_model(client, config, trained)
    _create_registered_model(client, name)
    tags = {
        **_model_tags(config, trained),
        _BASE_TAG: _base_name(config),
        _BASE_DIGEST_TAG: run.base_digest,
        **({BASE_COMMIT_TAG: run.base_commit} if run.base_commit else {}),
    }
    own = {"run_id": run.tracking_run_id, "tags": tags, "model_id": model.model_id}
    first, others = found_or_created(
        lambda: versions_of(config, run.fingerprint),
        lambda: client.create_model_version(name, model.artifact_location, **own),
    )
    for other in others:  # another process was faster by a moment
        delete_version(config, other)
    return first


def _create_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _model_tags(config: RunConfig, trained: TrainedRef) -> dict[str, str]:
    """What tells a packaged adapter from others, and how it is served."""
    own = {FINGERPRINT_TAG: trained.run.fingerprint, ADAPTER_TAG: trained.adapter.digest, **serving_tags(config)}
    confidence = _min_confidence(config, trained)
    return own if confidence is None else own | {CONFIDENCE_TAG: str(confidence)}


def _min_confidence(config: RunConfig, trained: TrainedRef) -> float | None:
    if config.max_automatic_error is None:
        return None
    found = load_handover(Path(trained.report.folder.path), config)
    return found.threshold if found else None


def _find_or_log_model(client: MlflowClient, config: RunConfig, trained: TrainedRef) -> LoggedModel:
    """The packaged adapter in the tracking store; one that a killed process left half-uploaded is completed."""
    run, experiment = trained.run, experiment_id(client, config)
    tags = _model_tags(config, trained) | {NAME_TAG: config.registered_model_name}
    model, _ = found_or_created(
        lambda: _logged_models(client, experiment, tags),
        lambda: client.create_logged_model(experiment, "adapter", run.tracking_run_id, tags=tags),
    )
    if model.status == "READY":
        return model
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model"
        confidence = _min_confidence(config, trained)
        package_adapter(trained, _base_name(config), config.eval_max_new_tokens, package, config.constrain, confidence)
        client.log_model_artifacts(model.model_id, str(package))
    return client.finalize_logged_model(model.model_id, "READY")


def _logged_models(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[LoggedModel]:
    """Those with these tags; one that is complete comes first, then the oldest."""
    own = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = client.search_logged_models([experiment], own)
    return sorted(found, key=lambda model: (model.status != "READY", model.creation_timestamp, model.model_id))


def _base_name(config: RunConfig) -> str:
    """The base's name on the hub, or its absolute folder on this machine."""
    base = base_folder(config.model_name)
    return str(base) if base else config.model_name
