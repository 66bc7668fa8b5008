"""Which runs are stuck, and which state they get."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running, Scheduled

from tasks.janitor import state_if_stuck
from tasks.recovery import JANITOR_CRASHES_AFTER, JANITOR_RESUMES_AFTER, MAX_ATTEMPTS, PENDING_RUN_RESUMES_AFTER

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
A_MOMENT = timedelta(seconds=1)


def new_state(state: State, age: timedelta, heartbeat: timedelta | None = None, crashes: int = 1) -> State | None:
    """The state that a run gets which entered its state, and sent its last heartbeat, so long ago."""
    run = FlowRun(flow_id=uuid4(), state=state.model_copy(update={"timestamp": NOW - age}))
    return state_if_stuck(run, None if heartbeat is None else NOW - heartbeat, crashes, NOW)


def test_janitor_crashes_a_silent_run() -> None:
    long = timedelta(hours=9)
    assert new_state(Running(), long, heartbeat=JANITOR_CRASHES_AFTER - A_MOMENT) is None
    assert new_state(Running(), JANITOR_CRASHES_AFTER - A_MOMENT) is None, "it may not have sent its first heartbeat"
    for silent in (
        new_state(Running(), long, heartbeat=JANITOR_CRASHES_AFTER + A_MOMENT),
        new_state(Running(), JANITOR_CRASHES_AFTER + A_MOMENT),
    ):
        assert silent and silent.is_crashed()
        assert "no heartbeat" in str(silent.message)


def test_janitor_ignores_heartbeats_of_an_earlier_attempt() -> None:
    assert new_state(Running(), A_MOMENT, heartbeat=timedelta(hours=1)) is None


def test_janitor_resumes_a_crashed_run_after_the_automation() -> None:
    assert new_state(Crashed(), JANITOR_RESUMES_AFTER - A_MOMENT) is None
    again = new_state(Crashed(), JANITOR_RESUMES_AFTER + A_MOMENT)
    assert again and again.is_scheduled() and again.name == "AwaitingRetry"


@pytest.mark.parametrize("state", [Crashed(), AwaitingRetry()], ids=lambda state: str(state.name))
def test_janitor_fails_a_run_that_keeps_crashing(state: State) -> None:
    failed = new_state(state, JANITOR_RESUMES_AFTER + A_MOMENT, crashes=MAX_ATTEMPTS + 1)
    assert failed and failed.is_failed()
    assert f"crashed {MAX_ATTEMPTS + 1} times" in str(failed.message)
    retried = new_state(state, JANITOR_RESUMES_AFTER + A_MOMENT, crashes=MAX_ATTEMPTS)
    assert retried is None or retried.is_scheduled()


def test_janitor_reschedules_a_pending_run_that_never_starts() -> None:
    assert new_state(Pending(), PENDING_RUN_RESUMES_AFTER - A_MOMENT) is None
    again = new_state(Pending(), PENDING_RUN_RESUMES_AFTER + A_MOMENT)
    assert again and again.is_scheduled() and "did not start it" in str(again.message)


@pytest.mark.parametrize(
    "state", [Completed(), Failed(), Cancelled(), Scheduled(), AwaitingRetry()], ids=lambda state: str(state.name)
)
def test_janitor_leaves_finished_and_queued_runs_alone(state: State) -> None:
    assert new_state(state, timedelta(days=9), heartbeat=timedelta(days=9)) is None


def test_janitor_cancels_a_cancelling_run_without_heartbeats() -> None:
    assert new_state(Cancelling(), JANITOR_CRASHES_AFTER - A_MOMENT) is None
    ended = new_state(Cancelling(), JANITOR_CRASHES_AFTER + A_MOMENT, heartbeat=timedelta(hours=1))
    assert ended and ended.is_cancelled()
