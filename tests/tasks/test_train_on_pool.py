"""When the wait for a training on another pool ends, and when a replaced process ends."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed, Failed, Running, Scheduled

from tasks import train_on_pool
from tasks.recovery import CRASHED_TRAINING_ENDS_AFTER
from tasks.refs import DatasetRef, FolderRef
from tasks.train_on_pool import _has_ended
from training_core.config import RunConfig


def in_state(state: State, age: timedelta = timedelta(0)) -> FlowRun:
    return FlowRun(flow_id=uuid4(), state=state.model_copy(update={"timestamp": datetime.now(UTC) - age}))


@pytest.mark.parametrize("state", [Completed(), Failed(), Cancelled()], ids=lambda state: str(state.name))
def test_wait_ends_when_the_training_ends(state: State) -> None:
    assert _has_ended(in_state(state))


@pytest.mark.parametrize("state", [Running(), Scheduled(), AwaitingRetry()], ids=lambda state: str(state.name))
def test_wait_continues_while_the_training_runs(state: State) -> None:
    assert not _has_ended(in_state(state, timedelta(days=9)))


def test_wait_for_a_crashed_training_outlasts_the_janitor() -> None:
    assert not _has_ended(in_state(Crashed(), CRASHED_TRAINING_ENDS_AFTER - timedelta(seconds=5)))
    assert _has_ended(in_state(Crashed(), CRASHED_TRAINING_ENDS_AFTER + timedelta(seconds=5)))


def test_training_of_changed_rows_is_a_new_run(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, names = [], []

    def start(*_: object, idempotency_key: str, flow_run_name: str, **given: object) -> FlowRun:
        keys.append(idempotency_key)
        names.append(flow_run_name)
        return in_state(Completed())

    monkeypatch.setattr(train_on_pool, "run_deployment", start)
    for key in ("first", "first", "changed"):
        rows = DatasetRef(FolderRef(f"/runs/datasets/{key}", None, ""), key, 0, 0, "")
        train_on_pool._start_or_find(RunConfig(train_on="train-flow/gpu"), rows, evaluation=1)
    assert keys[0] == keys[1] != keys[2]
    assert names[0] == names[1] != names[2], "the name has the fingerprint"
    assert all(name.startswith(f"{RunConfig().registered_model_name} ") for name in names)


FENCE = """
import sys
from prefect import flow
from prefect.runtime import flow_run
from tasks.recovery import end_when_replaced

@flow
def fenced() -> None:
    end_when_replaced(flow_run.id, flow_run.run_count)
    print("not replaced", flush=True)
    end_when_replaced(flow_run.id, flow_run.run_count + int(sys.argv[1]))
    print("continued", flush=True)

fenced()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("attempts_later", "exit_code"), [(0, 0), (1, 1)])
def test_replaced_process_ends_itself(prefect_api: str, attempts_later: int, exit_code: int) -> None:
    command = [sys.executable, "-c", FENCE, str(attempts_later)]
    environment = os.environ | {"PREFECT_API_URL": prefect_api}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert "not replaced" in found.stdout, found.stderr
    assert ("continued" in found.stdout) == (attempts_later == 0)
    assert found.returncode == exit_code, "without a worker there is a shell, which must not see a success"
