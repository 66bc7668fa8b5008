"""MLflow: one run per training identity, one registered version per adapter, one champion."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import httpx
import mlflow
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, LoggedModel, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from tasks.model_package import package_adapter
from tasks.refs import DatasetRef, EvalReport, FolderRef, RegisteredRef, RunRef, TrainedRef
from training_core.checkpoints import seal_digest
from training_core.config import RunConfig, SettingsError
from training_core.journal import Point
from training_core.local_base import base_folder
from training_core.model_setup import digest_base_model, fetch_base_model

EXPERIMENT = "sft-flow"
IDENTITY_TAG, FLOW_RUN_TAG, DESCRIPTION_TAG = "sft_flow.identity", "sft_flow.flow_run", "mlflow.note.content"
ADAPTER_TAG = "sft_flow.adapter_digest"
_BASE_TAG, _BASE_DIGEST_TAG = "sft_flow.base_model", "sft_flow.base_digest"
CANDIDATE, CHAMPION = "candidate", "champion"

_LONGEST_PARAM = 6000
_LONGEST_DESCRIPTION = 5000  # of PostgreSQL; SQLite takes any
_LARGEST_BATCH = 1000
_LONGEST_PROBE_SECONDS = 10


def tracking_uri(config: RunConfig) -> str:
    """``MLFLOW_TRACKING_URI`` where it is set, else a SQLite file in ``output_dir``, created when missing."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    store = Path(config.output_dir).resolve() / "mlflow.db"
    store.parent.mkdir(parents=True, exist_ok=True)
    # A store that two processes create at once, or one killed half-way, is broken for good.
    with FileLock(store.with_suffix(".lock")):
        if not store.exists():
            draft = store.with_suffix(".draft")
            draft.unlink(missing_ok=True)
            MlflowClient(f"sqlite:///{draft}").search_experiments()
            draft.rename(store)
    return f"sqlite:///{store}"


def connect(config: RunConfig) -> MlflowClient:
    """A client of the tracking server and the registry. Nothing global is set: MLflow would put it into the
    environment, and the next run in this process would take it for the user's wish."""
    uri = tracking_uri(config)
    return MlflowClient(uri, registry_uri=uri)


def tracking_problems(config: RunConfig) -> list[str]:
    """Why the tracking server or its registry would not take what this run makes. Asks, and writes nothing."""
    uri = tracking_uri(config)
    try:
        if uri.startswith("http"):
            httpx.get(f"{uri}/health", timeout=_LONGEST_PROBE_SECONDS)  # MLflow's own client would try for minutes
        experiment = connect(config).get_experiment_by_name(EXPERIMENT)
        _find_version(connect(config), config, "any")
    except (httpx.TransportError, MlflowException) as error:
        return [f"MLFLOW_TRACKING_URI: {uri!r} cannot take {config.registered_model_name!r}: {error}"]
    if experiment and experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        remedy = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        return [f"MLFLOW_TRACKING_URI: in {uri!r} experiment {EXPERIMENT!r} is deleted; bring it back: {remedy}"]
    return []


def open_tracking_run(config: RunConfig, identity: str, dataset: DatasetRef, rows: Path) -> str:
    """The id of the one run of this identity, created with its parameters and dataset when it is new."""
    client = connect(config)
    experiment = _experiment(client, config)
    found = client.search_runs([experiment], f"tags.`{IDENTITY_TAG}` = '{identity}'", order_by=["start_time ASC"])
    tags = {IDENTITY_TAG: identity, "mlflow.runName": identity[:12]}
    run = found[0] if found else client.create_run(experiment, tags=tags)
    known = run.data.params
    params = {name: str(value)[:_LONGEST_PARAM] for name, value in asdict(config).items() if name not in known}
    client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in params.items()])
    if not run.inputs.dataset_inputs:
        client.log_inputs(run.info.run_id, [_dataset_input(config, dataset)])
    if "data/refused.jsonl" not in {file.path for file in client.list_artifacts(run.info.run_id, "data")}:  # the last
        client.log_dict(run.info.run_id, asdict(config), "run_config.json")
        client.log_artifact(run.info.run_id, str(rows / "report.json"), "data")
        client.log_artifact(run.info.run_id, str(rows / "refused.jsonl"), "data")
    return str(run.info.run_id)


def takes_results(config: RunConfig, run_id: str) -> bool:
    """Whether a run is still there to be written to: somebody may have deleted it."""
    return bool(connect(config).get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)


def tag_run(config: RunConfig, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run; ``DESCRIPTION_TAG`` is the Markdown at the top of its page."""
    connect(config).log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def run_page(config: RunConfig, run_id: str) -> str | None:
    """Where the tracking server shows a run; ``None`` where a file takes the server's place."""
    uri, experiment = tracking_uri(config), connect(config).get_run(run_id).info.experiment_id
    if not uri.startswith(("http://", "https://")):
        return None
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def send_points(config: RunConfig, run_id: str, points: Sequence[Point]) -> None:
    """Log points of the curve with the times they were measured at; sending a point twice changes nothing.

    Raises ``ConnectionError`` when the tracking server does not take them.
    """
    metrics = [
        Metric(name, value, round(point.time * 1000), point.step)
        for point in points
        for name, value in point.values.items()
    ]
    client = connect(config)
    for start in range(0, len(metrics), _LARGEST_BATCH):
        try:
            client.log_batch(run_id, metrics=metrics[start : start + _LARGEST_BATCH])
        except MlflowException as error:
            raise ConnectionError(f"the tracking server did not take the curve: {error}") from error


def log_results(config: RunConfig, run_id: str, report: EvalReport) -> None:
    """Log scores, predictions and pictures to the training's run and close it.

    Every evaluation of an adapter has a folder of its own there, and its scores the time at which they were measured.
    """
    client, scores_file = connect(config), Path(report.folder.path) / "scores.json"
    measured_at = round(scores_file.stat().st_mtime * 1000)
    metrics = [
        Metric(f"{name}/{measure}".replace(" ", "_"), value, measured_at, 0)
        for name, scores in json.loads(scores_file.read_text(encoding="utf-8")).items()
        for measure, value in scores.items()
        if isinstance(value, int | float)
    ]
    client.log_batch(run_id, metrics=metrics)
    client.log_artifacts(run_id, report.folder.path, f"evaluation/{report.folder.digest[:12]}")
    if client.get_run(run_id).info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")


def find_or_create_version(config: RunConfig, trained: TrainedRef, description: str) -> str:
    """The number of the one registered version of this training; creates it, once, whatever crashed before.

    Raises ``ValueError`` when that version holds another adapter: its scores are not those of this one.
    """
    client, run = connect(config), trained.run
    version = _find_version(client, config, run.identity) or _create_version(client, config, trained)
    if version.tags[ADAPTER_TAG] != trained.adapter.digest:
        what = f"{version.name} version {version.version} holds the adapter of another run that trained the same"
        raise ValueError(f"{what}; start a new run: it judges that one, and trains nothing")
    client.update_model_version(config.registered_model_name, version.version, description[:_LONGEST_DESCRIPTION])
    return str(version.version)


def point_alias(config: RunConfig, alias: str, version: str) -> None:
    """Let an alias of the registered model point to a version."""
    connect(config).set_registered_model_alias(config.registered_model_name, alias, version)


def tag_version(config: RunConfig, version: str, tags: Mapping[str, str]) -> None:
    """Put tags on a version; old values of these tags are lost."""
    client = connect(config)
    for name, value in tags.items():
        client.set_model_version_tag(config.registered_model_name, version, name, value)


def find_version(config: RunConfig, identity: str) -> ModelVersion | None:
    """The one version of a training identity, if any."""
    return _find_version(connect(config), config, identity)


def named_version(config: RunConfig, name: str) -> ModelVersion | None:
    """The version of this number, or that this alias points to, if any."""
    client, model = connect(config), config.registered_model_name
    try:
        read = client.get_model_version if name.isdecimal() else client.get_model_version_by_alias
        return read(model, name)
    except MlflowException as error:
        # An unknown alias is an invalid parameter to some stores, a missing resource to others.
        if error.error_code in ("INVALID_PARAMETER_VALUE", ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)):
            return None
        raise


def fetch_champion(config: RunConfig, but_not: str) -> RegisteredRef | None:
    """The adapter that answers customers now, unless its identity is ``but_not``.

    Raises ``SettingsError`` when it cannot be had: nobody can then be compared with it.
    """
    version = named_version(config, CHAMPION)
    if version is None or version.tags.get(IDENTITY_TAG) == but_not:
        return None
    try:
        return fetch_version(config, version)
    except ValueError as error:
        remedy = f"let the alias {CHAMPION!r} point to a version that loads, or delete the alias"
        raise SettingsError([f"registered_model_name: the champion cannot be had: {error}; {remedy}"]) from error


def fetch_version(config: RunConfig, version: ModelVersion) -> RegisteredRef:
    """A version's files on this machine, checked against the digests it was registered with.

    Raises ``ValueError`` when sft-flow did not register it, when the registry's files are not those that were
    registered, or when its base is nowhere to be found.
    """
    missing = {IDENTITY_TAG, ADAPTER_TAG, _BASE_TAG, _BASE_DIGEST_TAG} - version.tags.keys()
    if missing:
        raise ValueError(f"{version.name} version {version.version} lacks the tags {', '.join(sorted(missing))}")
    folder = Path(config.output_dir).resolve() / "registered" / f"{version.name}-{version.version}"
    adapter, digest = folder / "adapter", version.tags[ADAPTER_TAG]
    if seal_digest(adapter) != digest:
        folder.mkdir(parents=True, exist_ok=True)
        packaged = f"{version.source}/artifacts/adapter"
        mlflow.artifacts.download_artifacts(packaged, dst_path=str(folder), tracking_uri=tracking_uri(config))
    if seal_digest(adapter) != digest:
        raise ValueError(f"the files of {version.name} version {version.version} are not those that were registered")
    base_digest = version.tags[_BASE_DIGEST_TAG]
    run = RunRef(version.tags[IDENTITY_TAG], str(folder), base_digest, version.run_id)
    base = _find_base(config, version.tags[_BASE_TAG], base_digest)
    return RegisteredRef(str(version.version), run, FolderRef(str(adapter), None, digest), str(base))


def _find_base(config: RunConfig, name: str, digest: str) -> Path:
    """The base of this digest: the settings' own, or the one of that name; a folder's name may be another machine's."""
    for candidate in dict.fromkeys((config.model_name, name)):
        with contextlib.suppress(ValueError):  # no folder any more, and no name on the hub
            base = fetch_base_model(candidate, config.cache_dir)
            if digest_base_model(base) == digest:
                return base
    raise ValueError(f"neither {config.model_name} nor {name} is the base model of that version: gone, or changed")


def _experiment(client: MlflowClient, config: RunConfig) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return str(found.experiment_id)
    local = not os.environ.get("MLFLOW_TRACKING_URI")
    location = (Path(config.output_dir).resolve() / "mlartifacts").as_uri() if local else None
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
        return str(client.get_experiment_by_name(EXPERIMENT).experiment_id)


def _dataset_input(config: RunConfig, dataset: DatasetRef) -> DatasetInput:
    source = json.dumps({"train": config.dataset_path, "held_out": config.eval_path})
    profile = json.dumps({"train_rows": dataset.train_rows, "held_out_rows": dataset.held_out_rows})
    name = Path(config.dataset_path).name
    return DatasetInput(
        Dataset(name, dataset.digest[:36], "local", source, profile=profile), [InputTag("mlflow.data.context", "train")]
    )


def _find_version(client: MlflowClient, config: RunConfig, identity: str) -> ModelVersion | None:
    name = config.registered_model_name
    found = client.search_model_versions(f"name = '{name}' and tags.`{IDENTITY_TAG}` = '{identity}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _create_version(client: MlflowClient, config: RunConfig, trained: TrainedRef) -> ModelVersion:
    name, run = config.registered_model_name, trained.run
    model = _find_or_log_model(client, config, trained)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    tags = {
        IDENTITY_TAG: run.identity,
        ADAPTER_TAG: trained.adapter.digest,
        _BASE_TAG: _base_name(config),
        _BASE_DIGEST_TAG: run.base_digest,
    }
    own = client.create_model_version(
        name, model.artifact_location, run.tracking_run_id, tags=tags, model_id=model.model_id
    )
    first = _find_version(client, config, run.identity) or own
    if first.version != own.version:  # another process was faster by a moment
        client.delete_model_version(name, own.version)
    return first


def _find_or_log_model(client: MlflowClient, config: RunConfig, trained: TrainedRef) -> LoggedModel:
    """The packaged adapter in the tracking store; one that a killed process left half-uploaded is completed."""
    run, experiment = trained.run, _experiment(client, config)
    tags = {IDENTITY_TAG: run.identity, ADAPTER_TAG: trained.adapter.digest}
    own = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = client.search_logged_models([experiment], own)
    if found and found[0].status == "READY":
        return found[0]
    model = found[0] if found else client.create_logged_model(experiment, "adapter", run.tracking_run_id, tags=tags)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model"
        # No later evaluation of this version may wait longer for an answer than customers do.
        longest = max(config.eval_max_new_tokens, config.max_seq_length)
        package_adapter(trained, _base_name(config), longest, package)
        client.log_model_artifacts(model.model_id, str(package))
    return client.finalize_logged_model(model.model_id, "READY")


def _base_name(config: RunConfig) -> str:
    """The base's name on the hub, or its absolute folder on this machine."""
    base = base_folder(config.model_name)
    return str(base) if base else config.model_name
