"""Tasks between an evaluated adapter and its version in the model registry, in both directions."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from prefect import get_run_logger, task

from tasks.artifact_store import open_folder
from tasks.commands import registry_command
from tasks.recovery import NETWORK
from tasks.refs import DatasetRef, EvalReport, ModelVersionRef, RegisteredRef, TrainedRef
from tasks.registry import fetch_version, find_or_create_version
from tasks.tracking import log_results, tracking_uri
from tasks.versions import CANDIDATE, named_version, point_alias, require_served_settings, require_tracking_run
from training_core.config import RunConfig, SettingsError
from training_core.evaluation.comparison import load_scores
from training_core.evaluation.evidence import load_left_out
from training_core.evaluation.report import score_grid

CHECK_TIMEOUT_SECONDS = 1800


@task(task_run_name="register adapter", **NETWORK)
def register_adapter(config: RunConfig, trained: TrainedRef) -> None:
    """Register the adapter once, check that it answers in a new process as it was evaluated, and make it candidate.

    Runs on the machine that trained it, because it computes on the GPU. Retried because the registry is reached over
    the network. Raises ``RuntimeError`` when the registered model does not load or gives other answers, and
    ``ValueError`` when another run with the same fingerprint has registered its adapter meanwhile.
    """
    version = find_or_create_version(config, trained, describe_version(trained))
    check_in_fresh_process(config, version, trained.report)
    point_alias(config, CANDIDATE, version)


@task(task_run_name="download version {name}", **NETWORK)
def fetch_registered(config: RunConfig, name: str, dataset: DatasetRef) -> RegisteredRef:
    """The files of the version with this number or alias, to be evaluated on rows encoded for its base.

    Retried because the registry is reached over the network. Raises ``SettingsError`` when there is no such version,
    its tracking run was deleted, or its base or its limit of an answer is not that of the settings.
    """
    version = named_version(config, name)
    if version is None:
        model = config.registered_model_name
        fix = registry_command(config, "versions", model)
        raise SettingsError([f"version: {model} has no version or alias {name!r}; see what is there: {fix}"])
    require_tracking_run(config, version)
    require_served_settings(config, version)
    registered = fetch_version(config, version)
    if registered.run.base_digest != dataset.base_digest:
        what = f"version {version.version} has another base than {config.model_name!r}"
        raise SettingsError([f"model_name: {what}; give --model_name {registered.base}"])
    return registered


@task(task_run_name="record evaluation", **NETWORK)
def record_evaluation(config: RunConfig, trained: TrainedRef) -> ModelVersionRef:
    """Add the scores to the MLflow run of the training; the version keeps the description of its first evaluation."""
    report = replace(trained.report.folder, path=str(open_folder(trained.report.folder, config)))
    trained = replace(trained, report=replace(trained.report, folder=report))
    log_results(config, trained.run.tracking_run_id, trained.report)
    version = find_or_create_version(config, trained, describe_version(trained))
    return ModelVersionRef(config.registered_model_name, version, champion=False, verdict="not decided")


def describe_version(trained: TrainedRef) -> str:
    """The description of a version in the registry: it opens with the scores."""
    report = trained.report
    folder = Path(report.folder.path)
    return "\n\n".join(
        [
            f"Decision accuracy {report.accuracy['candidate']:.1%} over {report.rows} held-out rows, "
            f"false approvals {report.false_approvals['candidate']:.1%}.",
            score_grid(load_scores(folder), load_left_out(folder)).markdown(),
            f"Run fingerprint `{trained.run.fingerprint}`, adapter digest `{trained.adapter.digest}`.",
        ]
    )


def check_in_fresh_process(config: RunConfig, version: str, report: EvalReport) -> None:
    """Load the registered version in a new process and compare its answers with those of the evaluation."""
    found = subprocess.run(
        [
            *(sys.executable, "-m", "tasks.check_served"),
            f"models:/{config.registered_model_name}/{version}",
            f"{report.folder.path}/parity_sample.json",
        ],
        # A tasks.py in the working directory must not take the place of ours.
        env=os.environ | {"MLFLOW_TRACKING_URI": tracking_uri(config), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=CHECK_TIMEOUT_SECONDS,
    )
    if found.returncode != 0:
        raise RuntimeError(f"version {version} does not answer as trained: {found.stdout} {found.stderr[-4000:]}")
    get_run_logger().info("Version %s answers in a new process with %s", version, found.stdout.splitlines()[-1])
