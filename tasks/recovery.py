"""What happens when something fails or dies: every retry, delay, period and limit of sft-flow is in this file.

====================================  ====================================  ======================================
What happens                          Who acts, and when                    What follows
====================================  ====================================  ======================================
A server, store or the hub fails      The task: NETWORK                     The task is retried, three times
- and cannot be reached               The task: NETWORK                     The same, for more than half an hour
A disk is full or cannot be written,  The task, train-flow                  The run fails at once
or a file on it is gone
Prefect fails during the wait for a   The task: WAITING                     The same; errors of the training are
training on another pool                                                    not retried here
Scoring fails                         The task: SCORING                     The task is retried once
Training fails                        train-flow: TRAINING                  It loads the model again and continues
                                                                            from the last checkpoint, twice
- by wrong settings, rows or sizes    train-flow: retried_if_transient      The run fails at once
A machine dies or freezes             Automation: SILENT_RUN_CRASHES_AFTER  The run is Crashed
- and its event was lost              Janitor: JANITOR_CRASHES_AFTER        The same
A run is Crashed                      Automation:                           The run is AwaitingRetry, and resumes
                                      CRASHED_RUN_RESUMES_AFTER             on any worker of its pool
- and its event was lost              Janitor: JANITOR_RESUMES_AFTER        The same
A training stays Crashed              sft-flow:                             The waiting run fails
                                      CRASHED_TRAINING_ENDS_AFTER
A worker took a run, never started    Janitor: PENDING_RUN_RESUMES_AFTER    The run is AwaitingRetry
No worker takes a training            sft-flow: setting max_queue_hours     The training is Cancelled, the waiting
                                                                            run fails
A run crashes again and again         Janitor and flow: MAX_ATTEMPTS        The run fails
A frozen process wakes up, replaced   The process: POLL_SECONDS             The process ends
====================================  ====================================  ======================================

Automations and janitor act on runs of deployments. A command such as ``sft-flow run`` that was killed resumes when it
is started again; a failed run resumes when it is retried in the UI or with ``prefect flow-run retry``.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypedDict
from uuid import UUID

import httpx
from prefect import State, Task, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRunPolicy, TaskRun
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.tasks import RetryConditionCallable

from training_core.error_causes import is_lasting, is_network_error

# A flow run sends a heartbeat in this interval; three missed ones are a dead machine.
HEARTBEAT = timedelta(seconds=30)
SILENT_RUN_CRASHES_AFTER = 3 * HEARTBEAT
# A process worker reports one crash twice, about 6 s apart; a run resumed in between would crash again.
CRASHED_RUN_RESUMES_AFTER = timedelta(seconds=60)

# The janitor waits until the automations have had time to act, so it acts only where an event was lost.
AUTOMATION_DELAY = timedelta(minutes=2)
JANITOR_PERIOD = timedelta(minutes=5)
JANITOR_CRASHES_AFTER = SILENT_RUN_CRASHES_AFTER + AUTOMATION_DELAY
JANITOR_RESUMES_AFTER = CRASHED_RUN_RESUMES_AFTER + AUTOMATION_DELAY
PENDING_RUN_RESUMES_AFTER = timedelta(minutes=30)  # pulling an image may take most of it

# The second period is for a janitor run that is late, or that died with its worker.
CRASHED_TRAINING_ENDS_AFTER = JANITOR_RESUMES_AFTER + 2 * JANITOR_PERIOD

# Starts of one run, whatever ended each of them.
MAX_ATTEMPTS = 8

# Between two reads of a training's journal, of its own state, or of the state of a training on another pool.
POLL_SECONDS = 5


class TaskRetries(TypedDict):
    """The part of Prefect's ``@task`` that says what is retried."""

    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: RetryConditionCallable


class FlowRetries(TypedDict):
    """The part of Prefect's ``@flow`` that says what is retried."""

    retries: int
    retry_delay_seconds: int


def is_transient(_task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a task is tried again."""
    return may_be_gone(state.data if isinstance(state.data, BaseException) else None, run.run_count)


def may_be_gone(error: BaseException | None, tries: int) -> bool:
    """Whether an error may be gone at the next try: what servers did, not what settings, rows and disks are.

    After ``RETRIES`` only a server that cannot be reached is waited for.
    """
    if is_lasting(error):
        return False
    return tries <= RETRIES or is_network_error(error)


def _is_server_error(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, httpx.HTTPError)


# Of a task whose error may be gone; a server that cannot be reached is waited for as long as there are delays.
RETRIES = 3
# For a task that uses servers, stores or the hub.
_DELAYS = [5.0, 30, 120, 300, 300, 300, 600, 600]
NETWORK: TaskRetries = {"retries": len(_DELAYS), "retry_delay_seconds": _DELAYS, "retry_condition_fn": is_transient}
# For the task that waits for a training, which has retries of its own.
WAITING: TaskRetries = {**NETWORK, "retry_condition_fn": _is_server_error}
# Scoring may take an hour, so it is not repeated often.
SCORING: TaskRetries = {"retries": 1, "retry_delay_seconds": [10], "retry_condition_fn": is_transient}
# For the flow that trains: a model that failed half-way cannot be trained further.
TRAINING: FlowRetries = {"retries": 2, "retry_delay_seconds": 10}


@contextlib.contextmanager
def retried_if_transient() -> Iterator[None]:
    """The body of a flow with retries: an error that no retry mends ends the run at once.

    A flow has no retry condition. Its retries are the server's, which follows the policy of the run.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if not is_lasting(error):
            raise
        with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.id), empirical_policy=FlowRunPolicy(retries=0))
        raise


def limit_attempts() -> None:
    """Raise ``RuntimeError`` when this run has been started too often; crashes and retries both count."""
    if flow_run.run_count > MAX_ATTEMPTS:
        raise RuntimeError(
            f"this run has been started {MAX_ATTEMPTS} times and never finished; its log shows how far it came. "
            "A new run with the same settings continues from the last checkpoint"
        )


def end_when_replaced(run_id: str, run_count: int) -> None:
    """End this process when another process has taken over its run, or the run has ended.

    A machine that froze until its run was resumed elsewhere, and then woke up, must not train next to its replacement,
    and must not report a state: a worker reports none for exit code 0. Raises ``httpx.HTTPError`` when the server does
    not answer, and ``prefect.exceptions.ObjectNotFound`` when the run was deleted.
    """
    with get_client(sync_client=True) as client:
        now = client.read_flow_run(UUID(run_id))
    if now.run_count != run_count or not (now.state and (now.state.is_running() or now.state.is_cancelling())):
        get_run_logger().error("This run continues elsewhere or has ended (%s); this process ends", now.state)
        APILogWorker.drain_all(timeout=5)
        os._exit(0 if now.deployment_id else 1)  # without a deployment there is no worker, but a shell that waits
