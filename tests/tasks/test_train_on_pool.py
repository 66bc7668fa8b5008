"""When the wait for a training on another pool is over, and when a process has to leave its run to another."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed, Failed, Running, Scheduled

from tasks import train_on_pool
from tasks.janitor import CRASHED_FOR, JANITOR_PERIOD
from tasks.refs import DatasetRef, FolderRef
from tasks.train_on_pool import GRACE, _is_over
from training_core.config import RunConfig


def in_state(state: State, age: timedelta = timedelta(0)) -> FlowRun:
    return FlowRun(flow_id=uuid4(), state=state.model_copy(update={"timestamp": datetime.now(UTC) - age}))


@pytest.mark.parametrize("state", [Completed(), Failed(), Cancelled()], ids=lambda state: str(state.name))
def test_the_wait_ends_with_the_training(state: State) -> None:
    assert _is_over(in_state(state))


@pytest.mark.parametrize("state", [Running(), Scheduled(), AwaitingRetry()], ids=lambda state: str(state.name))
def test_the_wait_goes_on_while_the_training_does(state: State) -> None:
    assert not _is_over(in_state(state, timedelta(days=9)))


def test_a_crashed_training_is_waited_for_until_even_the_janitor_has_had_its_time() -> None:
    assert GRACE > CRASHED_FOR + JANITOR_PERIOD
    assert not _is_over(in_state(Crashed(), GRACE - timedelta(seconds=5)))
    assert _is_over(in_state(Crashed(), GRACE + timedelta(seconds=5)))


def test_rows_that_changed_while_a_training_ran_are_another_training(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def start(*_: object, idempotency_key: str, **given: object) -> FlowRun:
        keys.append(idempotency_key)
        return in_state(Completed())

    monkeypatch.setattr(train_on_pool, "run_deployment", start)
    for key in ("first", "first", "changed"):
        rows = DatasetRef(FolderRef(f"/runs/datasets/{key}", None, ""), "", 0, 0, "")
        train_on_pool._start_or_find(RunConfig(train_on="train-flow/gpu"), rows)
    assert keys[0] == keys[1] != keys[2]


FENCE = """
import sys
from prefect import flow
from prefect.runtime import flow_run
from tasks.recovery import end_when_replaced

@flow
def probe() -> None:
    end_when_replaced(flow_run.id, flow_run.run_count)
    print("still its own", flush=True)
    end_when_replaced(flow_run.id, flow_run.run_count + int(sys.argv[1]))
    print("went on", flush=True)

probe()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("attempts_later", "exit_code"), [(0, 0), (1, 1)])
def test_a_process_whose_run_is_another_ones_now_ends_and_one_without_a_worker_does_not_call_it_success(
    prefect_api: str, attempts_later: int, exit_code: int
) -> None:
    command = [sys.executable, "-c", FENCE, str(attempts_later)]
    told = os.environ | {"PREFECT_API_URL": prefect_api}
    found = subprocess.run(command, env=told, capture_output=True, text=True, timeout=200, check=False)
    assert "still its own" in found.stdout, found.stderr
    assert ("went on" in found.stdout) == (attempts_later == 0)
    assert found.returncode == exit_code
