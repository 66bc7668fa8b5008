"""Shows a training from outside: a thread of its own reads the journal, so that no server can stall a step."""

import contextvars
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run

from tasks.refs import RunRef
from tasks.registry import send_points
from tasks.store import save_progress
from training_core.config import RunConfig
from training_core.journal import Point, read_journal

SECONDS_BETWEEN_LOOKS = 5

_TOLD = {
    "loss": "loss {:.4g}",
    "eval_loss": "held-out loss {:.4g}",
    "tokens_per_second": "{:,.0f} real tokens/s",
    "peak_memory_gib": "{:.2f} GiB at most",
}


@dataclass
class _Follower:
    config: RunConfig
    run: RunRef
    attempt: tuple[str, int]
    sent: int = 0
    saved_step: int = 0
    artifact: UUID | None = None

    def catch_up(self) -> None:
        """Send what is new since the last look, and bring new checkpoints to safety."""
        points = read_journal(Path(self.run.path) / "journal.jsonl")
        send_points(self.config, self.run.tracking_run_id, points[self.sent :])
        if len(points) > self.sent:
            self._show_progress(points)
        self.sent = len(points)
        self.saved_step = save_progress(Path(self.run.path), self.run.identity, self.saved_step)

    def follow(self, finished: threading.Event) -> None:
        while not finished.wait(SECONDS_BETWEEN_LOOKS):
            try:
                self._end_when_replaced()
                self.catch_up()
            except (OSError, httpx.HTTPError) as error:  # OSError: connections and stores
                get_run_logger().warning("Progress not shown this time, training goes on: %s", error)

    def _end_when_replaced(self) -> None:
        """End this process, silently, when its run is no longer its own.

        A machine that froze long enough to be given up, and woke, must neither train beside its replacement nor report
        a state for it: exit code 0 tells the worker nothing.
        """
        run_id, run_count = self.attempt
        with get_client(sync_client=True) as client:
            now = client.read_flow_run(UUID(run_id))
        if now.run_count != run_count or not (now.state and (now.state.is_running() or now.state.is_cancelling())):
            get_run_logger().error("This run goes on elsewhere or is over (%s); this process ends", now.state)
            APILogWorker.drain_all(timeout=5)
            os._exit(0)

    def _show_progress(self, points: list[Point]) -> None:
        share, text = 100 * points[-1].step / points[-1].of_steps, describe_progress(points)
        if self.artifact:
            update_progress_artifact(self.artifact, share, text)
        else:
            artifact = create_progress_artifact(share, key="training-progress", description=text)
            assert isinstance(artifact, UUID)  # a coroutine only where the caller is one
            self.artifact = artifact


@contextmanager
def follow_journal(config: RunConfig, run: RunRef) -> Iterator[None]:
    """While the body trains: its curve in MLflow, its progress in Prefect, its checkpoints in the store; and its end
    when the run has been given to another process.

    Servers that do not answer are tried again at the next look; after the body all points must arrive. Raises
    ``OSError`` or ``httpx.HTTPError`` when they do not.
    """
    follower, finished = _Follower(config, run, (flow_run.id, flow_run.run_count)), threading.Event()
    in_this_task = contextvars.copy_context()
    thread = threading.Thread(target=in_this_task.run, args=(follower.follow, finished), daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
    follower.catch_up()


def describe_progress(points: list[Point]) -> str:
    """Where a training is, when it will be done at its pace, its latest losses, its speed and memory."""
    last = points[-1]
    latest = {name: value for point in points for name, value in point.values.items()}
    told = [form.format(latest[name]) for name, form in _TOLD.items() if name in latest]
    place = f"Step {last.step} of {last.of_steps}"
    if "seconds_per_step" in latest:  # not before the first loss; the held-out loss may come earlier
        left = latest["seconds_per_step"] * (last.of_steps - last.step)
        place += f", about {timedelta(seconds=round(left))} left"
    return f"{place}: {', '.join(told)}"
