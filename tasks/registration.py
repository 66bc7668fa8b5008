"""Tasks from a judged adapter to a version in the model registry, and to the right to answer customers."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from prefect import get_run_logger, task
from prefect.events import emit_event

from tasks.refs import EvalReport, ModelVersionRef, TrainedRef
from tasks.registry import (
    CANDIDATE,
    CHAMPION,
    champion_version,
    find_or_create_version,
    log_results,
    point_alias,
    tracking_uri,
)
from tasks.store import open_folder
from training_core.config import RunConfig
from training_core.contest import load_scores
from training_core.report import score_grid

CHECK_TIMEOUT_SECONDS = 1800
PROMOTED = "sft-flow.promoted"


@task(retries=3, retry_delay_seconds=[5, 30, 120])
def register_adapter(config: RunConfig, trained: TrainedRef) -> ModelVersionRef:
    """Register the adapter once, show that a fresh process answers with the same tokens, and call it candidate.

    Retried because the registry is reached over the network. Raises ``RuntimeError`` when the registered model does
    not load or answers otherwise than the model in memory did.
    """
    trained = bring_here(trained, config)
    log_results(config, trained)
    version = find_or_create_version(config, trained, describe_version(trained))
    check_in_fresh_process(config, version, trained.report)
    point_alias(config, CANDIDATE, version)
    return ModelVersionRef(config.registered_model_name, version, champion=False, verdict="not judged")


@task(retries=3, retry_delay_seconds=[5, 30, 120])
def promote(config: RunConfig, version: ModelVersionRef, report: EvalReport) -> ModelVersionRef:
    """Make the version champion when it has earned it, and say why or why not."""
    reigning = champion_version(config)
    if reigning and str(reigning.version) == version.version:
        return dataclasses.replace(version, champion=True, verdict="is the champion already")
    earned, verdict = judge(report, config.min_improvement)
    if earned:
        point_alias(config, CHAMPION, version.version)
        emit_event(
            PROMOTED,
            resource={"prefect.resource.id": f"sft-flow.model.{version.name}.{version.version}"},
            payload={"verdict": f"{version.name} version {version.version} {verdict}"},
        )
    get_run_logger().info("Version %s %s", version.version, verdict)
    return dataclasses.replace(version, champion=earned, verdict=verdict)


def judge(report: EvalReport, min_improvement: float) -> tuple[bool, str]:
    """Whether the candidate beats everyone else by more than ``min_improvement``, and gives no more away than the
    champion does."""
    rivals = {name: accuracy for name, accuracy in report.accuracy.items() if name != "candidate"}
    best = max(rivals, key=rivals.__getitem__)
    own, rival = report.accuracy["candidate"], rivals[best]
    if own <= rival + min_improvement:
        return False, f"stays candidate: {own:.1%} of decisions right, the {best} has {rival:.1%}"
    given_away = report.wrongly_favourable
    if "champion" in rivals and given_away["candidate"] > given_away["champion"]:
        return False, (
            f"stays candidate: wrongly favourable in {given_away['candidate']:.1%} of the cases, "
            f"the champion in {given_away['champion']:.1%}"
        )
    return True, f"becomes champion: {own:.1%} of decisions right, the {best} has {rival:.1%}"


def bring_here(trained: TrainedRef, config: RunConfig) -> TrainedRef:
    """The same, with the paths of this machine."""
    adapter, report = (open_folder(ref, config) for ref in (trained.adapter, trained.report.folder))
    return dataclasses.replace(
        trained,
        adapter=dataclasses.replace(trained.adapter, path=str(adapter)),
        report=dataclasses.replace(trained.report, folder=dataclasses.replace(trained.report.folder, path=str(report))),
    )


def describe_version(trained: TrainedRef) -> str:
    """The description of a version in the registry: it opens with the scores."""
    report = trained.report
    return "\n\n".join(
        [
            f"Decision accuracy {report.accuracy['candidate']:.1%} over {report.rows} held-out rows, "
            f"wrongly favourable {report.wrongly_favourable['candidate']:.1%}.",
            score_grid(load_scores(Path(report.folder.path))).markdown(),
            f"Training identity `{trained.run.identity}`, adapter digest `{trained.adapter.digest}`.",
        ]
    )


def check_in_fresh_process(config: RunConfig, version: str, report: EvalReport) -> None:
    """Load the registered version in a new process and compare its tokens with those of the model in memory."""
    found = subprocess.run(
        [
            *(sys.executable, "-m", "tasks.check_served"),
            f"models:/{config.registered_model_name}/{version}",
            f"{report.folder.path}/probe.json",
        ],
        env=os.environ | {"MLFLOW_TRACKING_URI": tracking_uri(config)},
        capture_output=True,
        text=True,
        timeout=CHECK_TIMEOUT_SECONDS,
    )
    if found.returncode != 0:
        raise RuntimeError(f"version {version} does not answer as trained: {found.stdout} {found.stderr[-4000:]}")
    get_run_logger().info("Version %s answers a fresh process with the same tokens", version)
