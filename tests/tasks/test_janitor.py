"""Which runs are abandoned, and what becomes of them."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running, Scheduled

from tasks.janitor import CRASHED_FOR, PENDING_FOR, SILENT_FOR, judge
from tasks.recovery import MOST_ATTEMPTS

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
A_MOMENT = timedelta(seconds=1)


def judged(state: State, age: timedelta, heartbeat: timedelta | None = None, crashes: int = 1) -> State | None:
    """The verdict on a run that has been in a state for so long and whose last heartbeat is so long ago."""
    run = FlowRun(flow_id=uuid4(), state=state.model_copy(update={"timestamp": NOW - age}))
    return judge(run, None if heartbeat is None else NOW - heartbeat, crashes, NOW)


def test_a_run_that_is_silent_for_too_long_has_crashed() -> None:
    long = timedelta(hours=9)
    assert judged(Running(), long, heartbeat=SILENT_FOR - A_MOMENT) is None
    assert judged(Running(), SILENT_FOR - A_MOMENT) is None, "its first heartbeat is yet to come"
    for silent in (judged(Running(), long, heartbeat=SILENT_FOR + A_MOMENT), judged(Running(), SILENT_FOR + A_MOMENT)):
        assert silent and silent.is_crashed()
        assert "no heartbeat" in str(silent.message)


def test_a_heartbeat_of_an_earlier_attempt_does_not_speak_against_the_new_one() -> None:
    assert judged(Running(), A_MOMENT, heartbeat=timedelta(hours=1)) is None


def test_a_crashed_run_is_taken_up_again_when_the_automation_has_had_its_time() -> None:
    assert judged(Crashed(), CRASHED_FOR - A_MOMENT) is None
    again = judged(Crashed(), CRASHED_FOR + A_MOMENT)
    assert again and again.is_scheduled() and again.name == "AwaitingRetry"


@pytest.mark.parametrize("state", [Crashed(), AwaitingRetry()], ids=lambda state: str(state.name))
def test_a_run_that_crashes_again_and_again_fails_and_says_how_often(state: State) -> None:
    at_last = judged(state, CRASHED_FOR + A_MOMENT, crashes=MOST_ATTEMPTS + 1)
    assert at_last and at_last.is_failed()
    assert f"crashed {MOST_ATTEMPTS + 1} times" in str(at_last.message)
    once_more = judged(state, CRASHED_FOR + A_MOMENT, crashes=MOST_ATTEMPTS)
    assert once_more is None or once_more.is_scheduled()


def test_a_run_that_no_worker_starts_is_given_to_another() -> None:
    assert judged(Pending(), PENDING_FOR - A_MOMENT) is None
    again = judged(Pending(), PENDING_FOR + A_MOMENT)
    assert again and again.is_scheduled() and "no worker" in str(again.message)


@pytest.mark.parametrize(
    "state", [Completed(), Failed(), Cancelled(), Scheduled(), AwaitingRetry()], ids=lambda state: str(state.name)
)
def test_runs_that_are_over_or_wait_their_turn_are_left_alone(state: State) -> None:
    assert judged(state, timedelta(days=9), heartbeat=timedelta(days=9)) is None


def test_a_run_that_is_cancelled_on_a_machine_that_is_gone_is_cancelled_in_the_end() -> None:
    assert judged(Cancelling(), SILENT_FOR - A_MOMENT) is None
    ended = judged(Cancelling(), SILENT_FOR + A_MOMENT, heartbeat=timedelta(hours=1))
    assert ended and ended.is_cancelled()
