"""The training on another pool: started once, waited for through outages, resumed after a crash."""

import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import State, get_run_logger, task
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

from tasks.janitor import CRASHED_FOR, JANITOR_PERIOD
from tasks.recovery import end_when_replaced
from tasks.refs import DatasetRef, TrainedRef
from training_core.config import RunConfig

POLL_SECONDS = 5
# In this time a crashed run is resumed: after 60 s by an automation or, should its event be lost, by the janitor
GRACE = CRASHED_FOR + 2 * JANITOR_PERIOD

_RESULT = "train-flow-result"


def _server_failed(_task: object, _run: object, state: State[Any]) -> bool:
    """The training has retries of its own; only what the server did is tried again."""
    return isinstance(state.data, httpx.HTTPError)


@task(retries=3, retry_delay_seconds=[5, 30, 120], retry_condition_fn=_server_failed)
def train_on_pool(config: RunConfig, dataset: DatasetRef, evaluation: int = 1) -> TrainedRef:
    """Let the deployment ``train_on`` train, and return what it hands back.

    With ``evaluation`` 2, 3, … it evaluates what is trained against a champion that is new since the one before.
    The training is keyed on this very flow run and its rows: whoever asks again, after whatever died, gets the same.
    Raises ``RuntimeError`` when it ended without a result, and ``TimeoutError`` when no worker took it in
    ``max_queue_hours``.
    """
    child = _start_or_find(config, dataset, evaluation)
    get_run_logger().info("Training %s waits for a worker of its pool", child.name)
    try:
        child = _wait(child.id, timedelta(hours=config.max_queue_hours))
    except TerminationSignal:
        _cancel_if_cancelled(child.id)
        raise
    if not (child.state and child.state.is_completed()):
        raise RuntimeError(f"training {child.name} ended as {child.state}; its log says why. A retry resumes it")
    return _read_result(child.id)


def hand_back(trained: TrainedRef) -> None:
    """Leave the result where the waiting flow finds it: both sides share the Prefect server, and no result storage."""
    Artifact(type="result", key=_RESULT, data=asdict(trained), description="What the training made").create()


def _start_or_find(config: RunConfig, dataset: DatasetRef, evaluation: int) -> FlowRun:
    assert config.train_on
    child = run_deployment(
        config.train_on,
        parameters={"config": asdict(config), "dataset": asdict(dataset)},
        timeout=0,
        # The folder is named after what rows are made from: rows that changed meanwhile are another training.
        idempotency_key=f"{flow_run.id}:{Path(dataset.folder.path).name}:{evaluation}",
    )
    assert isinstance(child, FlowRun)  # a coroutine only where the caller is one
    if child.state and child.state.is_final() and not child.state.is_completed():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(child.id, AwaitingRetry(), force=True)
    return child


def _cancel_if_cancelled(child_id: UUID) -> None:
    """Cancel the training when this run is being cancelled; when only its machine goes away, the training goes on."""
    with get_client(sync_client=True) as client:
        own = client.read_flow_run(UUID(flow_run.id))
        if own.state and own.state.is_cancelling():
            client.set_flow_run_state(child_id, Cancelling())


def _cancel(run_id: UUID) -> None:
    """Of a run that no worker has: nobody would use what it trains."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Cancelled(message="no worker took it in time"), force=True)


def _wait(run_id: UUID, longest_queue: timedelta) -> FlowRun:
    """The run when it is over. One that crashed counts as over after a grace in which it may be resumed."""
    own, child = (flow_run.id, flow_run.run_count), None
    while child is None or not _is_over(child):
        time.sleep(POLL_SECONDS if child else 0)
        try:
            end_when_replaced(*own)
            with get_client(sync_client=True) as client:
                child = client.read_flow_run(run_id)
        except httpx.HTTPError as error:
            get_run_logger().warning("The server does not answer, the training goes on: %s", error)
            time.sleep(POLL_SECONDS)
            continue
        if child.state and child.state.is_scheduled() and datetime.now(UTC) - child.state.timestamp > longest_queue:
            _cancel(run_id)
            raise TimeoutError(
                f"no worker took training {child.name} in {longest_queue}; start one for pool {child.work_pool_name}, "
                "or raise max_queue_hours, and retry this run"
            )
    return child


def _is_over(run: FlowRun) -> bool:
    if run.state is None or not run.state.is_final():
        return False
    return not run.state.is_crashed() or datetime.now(UTC) - run.state.timestamp > GRACE


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
