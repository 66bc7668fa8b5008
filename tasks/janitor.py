"""Recovers runs whose events were lost: the automations act on events, the janitor reads the states of all runs."""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect import get_run_logger, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.states import AwaitingRetry, Cancelled, Crashed, Failed

from tasks.recovery import (
    JANITOR_CRASHES_AFTER,
    JANITOR_RESUMES_AFTER,
    MAX_ATTEMPTS,
    NETWORK,
    PENDING_RUN_RESUMES_AFTER,
)

FLOWS = ("sft-flow", "train-flow", "reevaluate-flow")
STATES = ("Running", "Cancelling", "Crashed", "Pending", "Submitting", "AwaitingRetry")


@dataclass(frozen=True)
class StuckRun:
    """A run that no process or automation will continue, and the state it gets."""

    run_id: UUID
    name: str
    seen_state: UUID | None
    new_state: State


@task(task_run_name="find stuck runs", **NETWORK)
def find_stuck_runs() -> list[StuckRun]:
    """Runs of deployments that are silent, crashed or pending for too long."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))),
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(is_null_=False),
                state=FlowRunFilterState(name=FlowRunFilterStateName(any_=list(STATES))),
            ),
            limit=200,
        )
        states = [(run, state_if_stuck(run, _last_heartbeat(client, run), _crashes(client, run))) for run in runs]
    return [StuckRun(run.id, run.name, run.state_id, state) for run, state in states if state]


@task(task_run_name="recover {stuck.name}", **NETWORK)
def recover_run(stuck: StuckRun) -> None:
    """Set the new state, unless the run has changed since it was read."""
    with get_client(sync_client=True) as client:
        if client.read_flow_run(stuck.run_id).state_id != stuck.seen_state:
            return
        client.set_flow_run_state(stuck.run_id, stuck.new_state, force=True)
    get_run_logger().warning("Run %s is now %s: %s", stuck.name, stuck.new_state.name, stuck.new_state.message)


def state_if_stuck(
    run: FlowRun, last_heartbeat: datetime | None, crashes: int, now: datetime | None = None
) -> State | None:
    """The state that a stuck run gets; ``None`` for a run that is not stuck. The periods are in ``tasks.recovery``."""
    assert run.state
    now = now or datetime.now(UTC)
    age = now - run.state.timestamp
    silent = now - max(run.state.timestamp, last_heartbeat or run.state.timestamp) > JANITOR_CRASHES_AFTER
    if run.state.is_running() and silent:
        return Crashed(message=f"no heartbeat in {JANITOR_CRASHES_AFTER}")
    if run.state.is_cancelling() and silent:
        return Cancelled(message=f"cancelled; its machine sent no heartbeat in {JANITOR_CRASHES_AFTER}")
    if (run.state.is_crashed() or run.state.name == "AwaitingRetry") and crashes > MAX_ATTEMPTS:
        return Failed(message=f"crashed {crashes} times; its log shows how far it came")
    if run.state.is_crashed() and age > JANITOR_RESUMES_AFTER:
        return AwaitingRetry(message="resumed")
    if run.state.is_pending() and age > PENDING_RUN_RESUMES_AFTER:
        return AwaitingRetry(message=f"its worker did not start it in {PENDING_RUN_RESUMES_AFTER}")
    return None


def _last_heartbeat(client: SyncPrefectClient, run: FlowRun) -> datetime | None:
    found = client.read_events(
        EventFilter(
            event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
            occurred=EventOccurredFilter(since=datetime.now(UTC) - 2 * JANITOR_CRASHES_AFTER),
        ),
        limit=1,
    )
    return max((event.occurred for event in found.events), default=None)


def _crashes(client: SyncPrefectClient, run: FlowRun) -> int:
    """How many times the run crashed; a worker may report one crash twice."""
    crashed = [state.is_crashed() for state in client.read_flow_run_states(run.id)]
    return sum(now and not before for before, now in itertools.pairwise([False, *crashed]))
