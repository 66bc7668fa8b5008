"""The recovery policy: each layer waits longer than the one that acts before it."""

import errno
from datetime import timedelta
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from prefect import Flow, Task
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from benchmarks.chaos_proxy import Fault, proxy
from deployments.job_templates import base_job_template
from deployments.topology import OFTEN, crash_silent_runs, resume_crashed_runs
from flows.janitor_flow import janitor_flow
from flows.reevaluate_flow import reevaluate_flow
from flows.sft_flow import sft_flow
from flows.train_flow import train_flow
from tasks import recovery
from training_core.config import SettingsError

WORKER_REPORTS_A_CRASH_TWICE_WITHIN = timedelta(seconds=10)
POLICIES = (recovery.NETWORK, recovery.WAITING, recovery.SCORING)


def test_silence_of_several_heartbeats_crashes_a_run() -> None:
    assert recovery.SILENT_RUN_CRASHES_AFTER >= 3 * recovery.HEARTBEAT


def test_resumption_waits_for_the_second_crash_report() -> None:
    assert recovery.CRASHED_RUN_RESUMES_AFTER > WORKER_REPORTS_A_CRASH_TWICE_WITHIN


def test_janitor_acts_after_the_automations() -> None:
    assert recovery.JANITOR_CRASHES_AFTER > recovery.SILENT_RUN_CRASHES_AFTER
    assert recovery.JANITOR_RESUMES_AFTER > recovery.CRASHED_RUN_RESUMES_AFTER


def test_waiting_run_outlasts_automation_and_janitor() -> None:
    slowest_janitor = recovery.JANITOR_RESUMES_AFTER + recovery.JANITOR_PERIOD
    assert max(recovery.CRASHED_RUN_RESUMES_AFTER, slowest_janitor) < recovery.CRASHED_TRAINING_ENDS_AFTER


def test_replaced_process_ends_before_its_run_resumes() -> None:
    """A process that wakes up finds its run Crashed before another process can start it."""
    assert timedelta(seconds=recovery.POLL_SECONDS) < recovery.CRASHED_RUN_RESUMES_AFTER


def test_attempts_leave_room_for_crashes_after_all_retries() -> None:
    assert 1 + recovery.TRAINING["retries"] < recovery.MAX_ATTEMPTS


def test_deployments_use_the_periods_of_the_table() -> None:
    assert crash_silent_runs([]).trigger.within == recovery.SILENT_RUN_CRASHES_AFTER
    assert resume_crashed_runs([]).trigger.within == recovery.CRASHED_RUN_RESUMES_AFTER
    assert OFTEN.cron == f"*/{recovery.JANITOR_PERIOD / timedelta(minutes=1):g} * * * *"
    environment = base_job_template("process", gpu=False)["job_configuration"]["env"]
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == f"{recovery.HEARTBEAT.total_seconds():g}"


def test_tasks_take_their_retries_from_the_table(all_tasks: list[Task[..., object]]) -> None:
    found = {task.name: task for task in all_tasks}
    assert {"validate_data", "open_run", "train_on_pool", "evaluate", "register_adapter", "promote"} <= found.keys()
    for name, task in found.items():
        retries = task.retries, task.retry_delay_seconds, task.retry_condition_fn
        assert not task.retries or retries in [tuple(policy.values()) for policy in POLICIES], name


@pytest.mark.parametrize("flow", [sft_flow, train_flow, reevaluate_flow, janitor_flow], ids=lambda flow: flow.name)
def test_flows_take_their_retries_from_the_table(flow: Flow[..., object]) -> None:
    expected = recovery.TRAINING["retries"] if flow is train_flow else 0
    assert flow.retries == expected


FULL = OSError(errno.ENOSPC, "No space left on device")


def wrapped(error: Exception) -> Exception:
    """As MLflow's client and SQLAlchemy raise it: in an error of their own, without its number."""
    try:
        try:
            raise error
        except OSError:
            raise RuntimeError("API request failed")  # noqa: B904
    except RuntimeError as outer:
        return outer


def not_sent_by_the_hub() -> Exception:
    """As the hub's client raises it when it has no file and cannot ask for it."""
    error = FileNotFoundError("cannot find the requested files in the local cache")
    error.__cause__ = ConnectionError()
    return error


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (OSError(), True),
        (SettingsError(["x"]), False),
        (FULL, False),
        (wrapped(FULL), False),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "journal.jsonl"), False),
        (FileNotFoundError("what a store, or the hub, does not have yet"), True),
        (not_sent_by_the_hub(), True),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs"), False),
        (FileExistsError(errno.EEXIST, "File exists", __file__), False),
        (FileExistsError(errno.EEXIST, "File exists", str(Path(__file__).parent)), True),
        (wrapped(ConnectionRefusedError()), True),
    ],
    ids=str,
)
def test_retries_skip_errors_of_settings_rows_and_disks(error: Exception, retried: bool) -> None:
    assert (
        recovery.NETWORK["retry_condition_fn"](None, TaskRun.model_construct(run_count=1), Failed(data=error))
        == retried
    )


@pytest.mark.parametrize(
    ("error", "retried"),
    [(wrapped(ConnectionRefusedError()), True), (TimeoutError(), True), (OSError(), False)],
    ids=repr,
)
def test_server_that_is_away_is_waited_for(error: Exception, retried: bool) -> None:
    late = TaskRun.model_construct(run_count=recovery.RETRIES + 1)
    assert recovery.NETWORK["retry_condition_fn"](None, late, Failed(data=error)) == retried
    assert sum(recovery.NETWORK["retry_delay_seconds"]) > timedelta(minutes=30).total_seconds()


@pytest.mark.parametrize(
    ("words", "awaited"),
    [
        ("An error occurred (503) when calling the HeadObject operation: Service Unavailable", True),
        ("API request to endpoint /x failed with error code 502 != 200", True),
        ("The size of tensor a (503) must match the size of tensor b (512)", False),
    ],
)
def test_words_of_a_proxy_are_no_others(words: str, awaited: bool) -> None:
    assert recovery.may_be_gone(RuntimeError(words), recovery.RETRIES + 1) == awaited


@pytest.mark.parametrize("repeats", ["0", "2"])
@pytest.mark.parametrize(
    ("fault", "awaited"), [(Fault.REFUSED, True), (Fault.AWAY, True), (Fault.HUNG, True), (Fault.ERROR, False)]
)
def test_mlflow_behind_a_proxy_is_waited_for(
    fault: Fault, awaited: bool, repeats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy hangs up, or answers with a 503, while the server behind it is away."""
    quick = {"MAX_RETRIES": repeats, "BACKOFF_FACTOR": "0", "TIMEOUT": "1"}
    for name, value in quick.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    with proxy("http://127.0.0.1:9", lambda _, __: fault) as faulty, pytest.raises(MlflowException) as raised:
        MlflowClient(faulty.address).get_experiment("1")
    assert recovery.may_be_gone(raised.value, recovery.RETRIES + 1) == awaited


@pytest.mark.parametrize("starts", [recovery.MAX_ATTEMPTS, recovery.MAX_ATTEMPTS + 1])
def test_attempts_of_a_run_are_limited(starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", str(starts))
    if starts <= recovery.MAX_ATTEMPTS:
        recovery.limit_attempts()
    else:
        with pytest.raises(RuntimeError, match=f"started {recovery.MAX_ATTEMPTS} times"):
            recovery.limit_attempts()
