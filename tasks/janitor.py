"""What the automations do at once, done again from the state of things: an event that was lost is not missed."""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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

from tasks.recovery import MOST_ATTEMPTS

FLOWS = ("sft-flow", "train-flow", "reevaluate-flow")
STATES = ("Running", "Cancelling", "Crashed", "Pending", "Submitting", "AwaitingRetry")

# Longer than the automations take, so that these are only seen to when an event was lost.
SILENT_FOR = timedelta(minutes=4)
CRASHED_FOR = timedelta(minutes=3)
PENDING_FOR = timedelta(minutes=30)  # an image may have to be pulled
JANITOR_PERIOD = timedelta(minutes=5)


@dataclass(frozen=True)
class Abandoned:
    """A run that nobody looks after, and the state it is to have."""

    run_id: UUID
    name: str
    seen: UUID | None
    state: State


@task
def find_abandoned() -> list[Abandoned]:
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
        judged = [(run, judge(run, _last_heartbeat(client, run), _crashes(client, run))) for run in runs]
    return [Abandoned(run.id, run.name, run.state_id, state) for run, state in judged if state]


@task
def settle(abandoned: Abandoned) -> None:
    """Give the run the state it is to have, unless it has moved on meanwhile."""
    with get_client(sync_client=True) as client:
        if client.read_flow_run(abandoned.run_id).state_id != abandoned.seen:
            return
        client.set_flow_run_state(abandoned.run_id, abandoned.state, force=True)
    get_run_logger().warning("Run %s is now %s: %s", abandoned.name, abandoned.state.name, abandoned.state.message)


def judge(run: FlowRun, last_heartbeat: datetime | None, crashes: int, now: datetime | None = None) -> State | None:
    """The state that an abandoned run is to have; ``None`` of one that is in good hands."""
    assert run.state
    now = now or datetime.now(UTC)
    age = now - run.state.timestamp
    silent = now - max(run.state.timestamp, last_heartbeat or run.state.timestamp) > SILENT_FOR
    if run.state.is_running() and silent:
        return Crashed(message=f"no heartbeat in {SILENT_FOR}")
    if run.state.is_cancelling() and silent:
        return Cancelled(message=f"cancelled, and no heartbeat in {SILENT_FOR}")
    if (run.state.is_crashed() or run.state.name == "AwaitingRetry") and crashes > MOST_ATTEMPTS:
        return Failed(message=f"crashed {crashes} times; its log says how far it came")
    if run.state.is_crashed() and age > CRASHED_FOR:
        return AwaitingRetry(message="resumed")
    if run.state.is_pending() and age > PENDING_FOR:
        return AwaitingRetry(message=f"no worker started it in {PENDING_FOR}")
    return None


def _last_heartbeat(client: SyncPrefectClient, run: FlowRun) -> datetime | None:
    found = client.read_events(
        EventFilter(
            event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
            occurred=EventOccurredFilter(since=datetime.now(UTC) - 2 * SILENT_FOR),
        ),
        limit=1,
    )
    return max((event.occurred for event in found.events), default=None)


def _crashes(client: SyncPrefectClient, run: FlowRun) -> int:
    """How often it crashed; a worker may report one crash twice."""
    crashed = [state.is_crashed() for state in client.read_flow_run_states(run.id)]
    return sum(now and not before for before, now in itertools.pairwise([False, *crashed]))
