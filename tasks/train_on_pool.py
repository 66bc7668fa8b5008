"""Training on another work pool: started once, waited for through server outages, resumed after a crash."""

import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import ArtifactSort
from prefect.deployments import run_deployment
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import AwaitingRetry, Cancelled, Cancelling
from pydantic import TypeAdapter

from tasks.recovery import CRASHED_TRAINING_ENDS_AFTER, POLL_SECONDS, WAITING, end_when_replaced
from tasks.refs import DatasetRef, TrainedRef
from tasks.run_names import run_name
from training_core.config import RunConfig
from training_core.training.fingerprint import run_fingerprint

_RESULT = "train-flow-result"


@task(task_run_name="wait for {config.train_on}", **WAITING)
def train_on_pool(config: RunConfig, dataset: DatasetRef, evaluation: int = 1) -> TrainedRef:
    """Run the deployment ``config.train_on``, wait for it, and return its result.

    With ``evaluation`` 2, 3, … it evaluates the adapter against a champion that is newer than the last evaluation. The
    idempotency key is this flow run, the rows and that number, so a retry, in any process, finds its training. Raises
    ``RuntimeError`` when it ended without a result, ``TimeoutError`` when no worker took it in ``max_queue_hours``.
    """
    child = _start_or_find(config, dataset, evaluation)
    get_run_logger().info("Training %s waits for a worker of pool %s", child.name, child.work_pool_name)
    try:
        child = _wait(child.id, timedelta(hours=config.max_queue_hours))
    except TerminationSignal:
        _cancel_if_cancelled(child.id)
        raise
    if not (child.state and child.state.is_completed()):
        raise RuntimeError(f"training {child.name} ended as {child.state}; its log shows why. A retry resumes it")
    return _read_result(child.id)


def return_result(trained: TrainedRef) -> None:
    """Store the result as an artifact for the waiting flow: the workers share the Prefect server, and no disk."""
    Artifact(type="result", key=_RESULT, data=asdict(trained), description="References to adapter and scores").create()


def _start_or_find(config: RunConfig, dataset: DatasetRef, evaluation: int) -> FlowRun:
    assert config.train_on
    child = run_deployment(
        config.train_on,
        parameters={"config": asdict(config), "dataset": asdict(dataset)},
        timeout=0,
        flow_run_name=run_name(config, run_fingerprint(config, dataset.digest, dataset.base_digest)),
        # The folder's name is a digest of the rows: when they change between two retries, the training is a new one.
        idempotency_key=f"{flow_run.id}:{Path(dataset.folder.path).name}:{evaluation}",
    )
    assert isinstance(child, FlowRun)  # a coroutine only where the caller is one
    if child.state and child.state.is_final() and not child.state.is_completed():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(child.id, AwaitingRetry(), force=True)
    return child


def _cancel_if_cancelled(child_id: UUID) -> None:
    """Cancel the training when this run is being cancelled. A worker that shuts down does not end the training."""
    with get_client(sync_client=True) as client:
        own = client.read_flow_run(UUID(flow_run.id))
        if own.state and own.state.is_cancelling():
            client.set_flow_run_state(child_id, Cancelling())


def _cancel_queued(run_id: UUID) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Cancelled(message="no worker took it in max_queue_hours"), force=True)


def _wait(run_id: UUID, longest_queue: timedelta) -> FlowRun:
    """The run once it has ended. A crashed run has ended when neither automation nor janitor resumed it in time."""
    own, child = (flow_run.id, flow_run.run_count), None
    while child is None or not _has_ended(child):
        time.sleep(POLL_SECONDS if child else 0)
        try:
            end_when_replaced(*own)
            with get_client(sync_client=True) as client:
                child = client.read_flow_run(run_id)
        except httpx.HTTPError as error:
            get_run_logger().warning("The Prefect server does not answer; the training continues: %s", error)
            time.sleep(POLL_SECONDS)
            continue
        if child.state and child.state.is_scheduled() and datetime.now(UTC) - child.state.timestamp > longest_queue:
            _cancel_queued(run_id)
            raise TimeoutError(
                f"no worker took training {child.name} in {longest_queue}; start a worker for pool "
                f"{child.work_pool_name} or raise max_queue_hours, and retry this run"
            )
    return child


def _has_ended(run: FlowRun) -> bool:
    if run.state is None or not run.state.is_final():
        return False
    return not run.state.is_crashed() or datetime.now(UTC) - run.state.timestamp > CRASHED_TRAINING_ENDS_AFTER


def _read_result(run_id: UUID) -> TrainedRef:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), key=ArtifactFilterKey(any_=[_RESULT])
            ),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
    return TypeAdapter(TrainedRef).validate_json(str(found[0].data))
