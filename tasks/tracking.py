"""MLflow's tracking server: one MLflow run per run fingerprint, with its settings, rows, curve and scores."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient

from tasks.commands import mlflow_command
from tasks.create_once import found_or_created, sent_once
from tasks.databases import forget_deleted, has_content, require_intact
from tasks.moved_store import ARTIFACTS, follow_move
from tasks.refs import DatasetRef, EvalReport, RunRef
from tasks.servers import MLFLOW, server_problems
from training_core.config import RunConfig, SettingsError
from training_core.error_causes import is_network_error
from training_core.escaping import without_secrets
from training_core.folders import complete_file, complete_folder, seal_digest
from training_core.training.journal import Point

EXPERIMENT = "sft-flow"
PUBLIC_ADDRESS = "SFT_FLOW_MLFLOW_URL"  # of the MLflow server for browsers, where workers use another one
DECISIONS = "sft-flow-decisions"  # apart from the trainings, one run for each registered model
FINGERPRINT_TAG, FLOW_RUN_TAG, DESCRIPTION_TAG = "sft_flow.fingerprint", "sft_flow.flow_run", "mlflow.note.content"
DATASET_TAG = "sft_flow.dataset"
BASE_COMMIT_TAG = "sft_flow.base_commit"  # on the hub


_PRIVATE_FOLDER = "private"
_REPORT_FOLDER, _REPORT_FILE = "report", "report.html"
_LONGEST_PARAM = 6000
_LARGEST_BATCH = 1000


def tracking_uri(config: RunConfig) -> str:
    """``MLFLOW_TRACKING_URI`` where it is set, else a SQLite file in ``output_dir``, created when missing."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        _reject_login(uri)
        return uri
    store = Path(config.output_dir).resolve() / "mlflow.db"
    store.parent.mkdir(parents=True, exist_ok=True)
    # MLflow leaves a SQLite file that no process can use when two create it at once, or when one is killed meanwhile.
    # Who may only read, as in a colleague's folder, creates nothing.
    with FileLock(store.with_suffix(".lock")) if os.access(store.parent, os.W_OK) else contextlib.nullcontext():
        if not has_content(store):  # deleted, or cut off at its beginning
            forget_deleted(store)
            with complete_file(store) as draft:
                MlflowClient(f"sqlite:///{draft}").search_experiments()
        _follow_move_once(store)
    return f"sqlite:///{store}"


def _reject_login(uri: str) -> None:
    """MLflow's client shows an address of a server as it is; a database has its password nowhere else."""
    if uri.startswith("http") and without_secrets(uri) != uri:
        fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        raise SettingsError([f"MLFLOW_TRACKING_URI: expected an address without a login, got {uri!r}; {fix}"])


@lru_cache
def _follow_move_once(store: Path) -> None:
    """A folder does not move while a process uses it. Raises ``SettingsError`` when the store is damaged."""
    require_intact(store)
    follow_move(store, DATASET_TAG)


def connect(config: RunConfig) -> MlflowClient:
    """A client of the tracking server and the registry. Does not call ``mlflow.set_tracking_uri``, which would set
    ``MLFLOW_TRACKING_URI`` for all later runs in this process."""
    uri = tracking_uri(config)
    return MlflowClient(uri, registry_uri=uri)


def tracking_problems(config: RunConfig) -> list[str]:
    """Why results could not be written to the tracking server or its registry. Only reads. Raises ``MlflowException``
    when the server went away meanwhile."""
    if problems := server_problems(MLFLOW):
        return problems
    uri = tracking_uri(config)
    try:
        with sent_once():  # MLflow's own client retries for minutes
            experiments = [connect(config).get_experiment_by_name(name) for name in (EXPERIMENT, DECISIONS)]
            connect(config).search_model_versions(f"name = '{config.registered_model_name}'", max_results=1)
    except MlflowException as error:
        if is_network_error(error):
            raise
        fix = "start the server, correct the URL or choose another registered_model_name"
        return [f"MLFLOW_TRACKING_URI: {uri!r} cannot register {config.registered_model_name!r}: {error}; {fix}"]
    deleted = [found for found in experiments if found and found.lifecycle_stage != LifecycleStage.ACTIVE]
    return [_deleted_experiment(uri, found) for found in deleted]


def _deleted_experiment(uri: str, found: Experiment) -> str:
    fix = mlflow_command(uri, "experiments", "restore", "--experiment-id", found.experiment_id)
    return f"MLFLOW_TRACKING_URI: experiment {found.name!r} in {uri!r} is deleted; restore it: {fix}"


def tracking_run_name(config: RunConfig) -> str:
    """The name of a new MLflow run: model, rows and today's date in UTC."""
    rows = config.dataset_path.rstrip("/").rpartition("/")[2]
    return f"{config.registered_model_name} {rows} {datetime.now(UTC):%Y-%m-%d}"


def open_tracking_run(config: RunConfig, fingerprint: str, dataset: DatasetRef, rows: Path) -> str:
    """The id of the one MLflow run of this fingerprint; created with its parameters and dataset when it is missing."""
    client = connect(config)
    experiment = experiment_id(client, config)
    name = tracking_run_name(config)
    tags = {FINGERPRINT_TAG: fingerprint, "mlflow.runName": name, DATASET_TAG: json.dumps(asdict(dataset))}
    if dataset.base_commit:
        tags[BASE_COMMIT_TAG] = dataset.base_commit
    run, others = found_or_created(
        lambda: _runs_of(client, experiment, fingerprint), lambda: client.create_run(experiment, tags=tags)
    )
    delete_runs(client, others)
    if run.info.status not in ("RUNNING", "FINISHED"):  # it has failed, and is resumed
        client.update_run(run.info.run_id, status="RUNNING")
    known = run.data.params
    params = {name: str(value)[:_LONGEST_PARAM] for name, value in asdict(config).items() if name not in known}
    client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in params.items()])
    if not run.inputs.dataset_inputs:
        client.log_inputs(run.info.run_id, [_dataset_input(config, dataset)])
    if "data/rejected.jsonl" not in {
        file.path for file in client.list_artifacts(run.info.run_id, "data")
    }:  # logged last
        client.log_dict(run.info.run_id, asdict(config), "run_config.json")
        client.log_artifact(run.info.run_id, str(rows / "report.json"), "data")
        client.log_artifact(run.info.run_id, str(rows / "rejected.jsonl"), "data")
    return str(run.info.run_id)


def _runs_of(client: MlflowClient, experiment: str, fingerprint: str) -> list[Run]:
    """All runs of a fingerprint; the one that has its parameters comes first, since a process uses it."""
    found = client.search_runs([experiment], f"tags.`{FINGERPRINT_TAG}` = '{fingerprint}'")
    return sorted(found, key=lambda run: (not run.data.params, run.info.start_time, run.info.run_id))


def delete_runs(client: MlflowClient, runs: Sequence[Run]) -> None:
    """Delete runs that were created twice. A process that has created one of them, and still uses it, is refused by the
    server and tries again."""
    for run in runs:
        try:
            client.set_terminated(run.info.run_id, "KILLED")  # the list of deleted runs shows the state, too
            client.delete_run(run.info.run_id)
        except MlflowException:
            if client.get_run(run.info.run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                raise  # else another process has deleted it at the same moment


def tag_run(config: RunConfig, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run; ``DESCRIPTION_TAG`` is the Markdown at the top of its page."""
    connect(config).log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def run_page(config: RunConfig, run_id: str) -> str | None:
    """The URL of a run's page for a browser; ``None`` when there is no server but a SQLite file."""
    uri = os.environ.get(PUBLIC_ADDRESS) or tracking_uri(config)
    experiment = connect(config).get_run(run_id).info.experiment_id
    if not uri.startswith(("http://", "https://")):
        return None
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def send_points(config: RunConfig, run_id: str, points: Sequence[Point]) -> None:
    """Log points of the curve with the times they were measured at; sending a point twice changes nothing.

    Raises ``ConnectionError`` when the tracking server does not store them.
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
            raise ConnectionError(f"the tracking server did not store the loss curve: {error}") from error


def log_results(config: RunConfig, run_id: str, report: EvalReport) -> None:
    """Log scores, predictions and pictures to the training's MLflow run and end it.

    Each evaluation of an adapter has its own artifact folder, and scores are logged with the time of their evaluation.
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
    run = client.get_run(run_id)
    if run.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")


def report_name(evidence: str, time: str) -> str:
    """The name of the page on a decision: the digest of the evaluation, then the time of the decision."""
    return f"{evidence[:12]}-{re.sub(r'[^0-9]', '', time)[:17]}"


def log_report_page(config: RunConfig, run_id: str, name: str, page: Path) -> None:
    """Log a report page to a run, next to the evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(page, Path(folder) / _REPORT_FILE)
        connect(config).log_artifact(run_id, str(Path(folder) / _REPORT_FILE), f"{_REPORT_FOLDER}/{name}")


def has_report_page(config: RunConfig, run_id: str, name: str) -> bool:
    """Whether ``log_report_page`` logged a page under this name."""
    folder = f"{_REPORT_FOLDER}/{name}"
    return f"{folder}/{_REPORT_FILE}" in {found.path for found in connect(config).list_artifacts(run_id, folder)}


def fetch_report_page(config: RunConfig, run_id: str, name: str, file: Path) -> bool:
    """Download the page that ``log_report_page`` logged under this name; whether there is one."""
    if not has_report_page(config, run_id, name):
        return False
    place = f"{_REPORT_FOLDER}/{name}/{_REPORT_FILE}"
    with tempfile.TemporaryDirectory() as folder, complete_file(file) as draft:
        shutil.copy(connect(config).download_artifacts(run_id, place, folder), draft)
    return True


def fetch_evaluation(config: RunConfig, run_id: str, evidence: str, folder: Path) -> bool:
    """Download the evaluation of this digest that ``log_results`` logged; whether it is there, complete."""
    client, place = connect(config), f"evaluation/{evidence[:12]}"
    if seal_digest(folder) != evidence and client.list_artifacts(run_id, place):
        with tempfile.TemporaryDirectory() as fetched, complete_folder(folder, seal_it=False) as draft:
            shutil.copytree(client.download_artifacts(run_id, place, fetched), draft, dirs_exist_ok=True)
    return seal_digest(folder) == evidence


def read_evaluation_file(config: RunConfig, run_id: str, evidence: str, name: str) -> str | None:
    """A text that ``log_results`` logged with the evaluation of this digest; ``None`` where there is none."""
    client, folder = connect(config), f"evaluation/{evidence[:12]}"
    if f"{folder}/{name}" not in {found.path for found in client.list_artifacts(run_id, folder)}:
        return None
    with tempfile.TemporaryDirectory() as place:
        return Path(client.download_artifacts(run_id, f"{folder}/{name}", place)).read_text(encoding="utf-8")


def log_private_file(config: RunConfig, run: RunRef, name: str) -> None:
    """Keep a file of the run's folder with its MLflow run, apart from the model; nothing where there is none."""
    file = Path(run.path) / name
    if file.is_file():
        connect(config).log_artifact(run.tracking_run_id, str(file), _PRIVATE_FOLDER)


def fetch_private_file(config: RunConfig, run: RunRef, name: str) -> None:
    """Download a file that ``log_private_file`` kept into the run's folder; nothing where there is none."""
    client, place = connect(config), f"{_PRIVATE_FOLDER}/{name}"
    if place in {file.path for file in client.list_artifacts(run.tracking_run_id, _PRIVATE_FOLDER)}:
        with tempfile.TemporaryDirectory() as folder:
            fetched = client.download_artifacts(run.tracking_run_id, place, folder)
            with complete_file(Path(run.path) / name) as draft:
                shutil.copy(fetched, draft)


def experiment_id(client: MlflowClient, config: RunConfig, name: str = EXPERIMENT) -> str:
    """That of all runs, or the one of this name, created when it is missing; without a server, artifacts go to
    ``output_dir``."""
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    local = not os.environ.get("MLFLOW_TRACKING_URI")
    location = (Path(config.output_dir).resolve() / ARTIFACTS).as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
        return str(client.get_experiment_by_name(name).experiment_id)


def _dataset_input(config: RunConfig, dataset: DatasetRef) -> DatasetInput:
    source = json.dumps({"train": config.dataset_path, "held_out": config.eval_path})
    profile = json.dumps({"train_rows": dataset.train_rows, "held_out_rows": dataset.held_out_rows})
    name = Path(config.dataset_path).name
    return DatasetInput(
        Dataset(name, dataset.digest[:36], "local", source, profile=profile), [InputTag("mlflow.data.context", "train")]
    )
