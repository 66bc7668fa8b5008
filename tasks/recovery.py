"""What is tried again and what is not: failures, runs that die again and again, runs given to another process."""

import os
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect import State, get_run_logger
from prefect.client.orchestration import get_client
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run

MOST_ATTEMPTS = 8


@dataclass
class Attempt:
    """Keeps the error that its body raises, of whatever type: the clients of stores and servers have types of their
    own, and those of optional packages cannot be named here."""

    error: Exception | None = None

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> bool:
        if isinstance(error, Exception):  # what ends a process passes
            self.error = error
        return self.error is not None

    @property
    def told(self) -> str:
        """The error with its type, for some have no words."""
        return f"{type(self.error).__name__}: {self.error}"


def is_transient(_task: object, _run: object, state: State[Any]) -> bool:
    """Whether a failure is worth another try: what the network did, not what settings and rows are."""
    return not isinstance(state.data, ValueError)


def limit_attempts() -> None:
    """Raises ``RuntimeError`` when this run has been started too often; crashes and retries both count."""
    if flow_run.run_count > MOST_ATTEMPTS:
        raise RuntimeError(
            f"this run has been started {MOST_ATTEMPTS} times without coming to an end; its log says how far it came. "
            "A new run with the same settings goes on from the last checkpoint"
        )


def end_when_replaced(run_id: str, run_count: int) -> None:
    """End this process, silently, when its run is no longer its own.

    A machine that froze long enough to be given up, and woke, must neither work beside its replacement nor report a
    state for it: exit code 0 tells a worker nothing. Raises ``httpx.HTTPError`` when the server does not answer.
    """
    with get_client(sync_client=True) as client:
        now = client.read_flow_run(UUID(run_id))
    if now.run_count != run_count or not (now.state and (now.state.is_running() or now.state.is_cancelling())):
        get_run_logger().error("This run goes on elsewhere or is over (%s); this process ends", now.state)
        APILogWorker.drain_all(timeout=5)
        os._exit(0 if now.deployment_id else 1)  # without a deployment there is no worker, but somebody who waits
