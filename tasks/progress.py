"""Shows a training from outside: a thread of its own reads the journal, so that no server can stall a step."""

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run

from tasks.artifact_store import save_progress
from tasks.recovery import Attempt, end_when_replaced
from tasks.refs import RunRef
from tasks.tracking import send_points
from training_core.config import RunConfig
from training_core.training.journal import Point, read_journal

POLL_SECONDS = 5

_TOLD = {
    "loss": "loss {:.4g}",
    "eval_loss": "held-out loss {:.4g}",
    "tokens_per_second": "{:,.0f} tokens before sharing/s",
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
        """Send what is new since the last look."""
        points = read_journal(Path(self.run.path) / "journal.jsonl")
        send_points(self.config, self.run.tracking_run_id, points[self.sent :])
        if len(points) > self.sent:
            self._show_progress(points)
        self.sent = len(points)

    def save(self) -> None:
        """Bring a new checkpoint to safety."""
        self.saved_step = save_progress(Path(self.run.path), self.run.fingerprint, self.saved_step)

    def watch(self) -> None:
        """End with the run, and show what is new."""
        end_when_replaced(*self.attempt)
        self.catch_up()

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

    A look that fails, in whatever way, is told and tried again at the next one; after the body all points and the last
    checkpoint must arrive. Raises what the client of the server or the store raises when they do not.
    """
    follower, finished = _Follower(config, run, (flow_run.id, flow_run.run_count)), threading.Event()
    # Apart, so that a store that fails in a way of its own cannot keep a replaced process alive.
    threads = [_again_and_again(look, finished) for look in (follower.watch, follower.save)]
    try:
        yield
    finally:
        finished.set()
        for thread in threads:
            thread.join()
    follower.catch_up()
    follower.save()


def _again_and_again(look: Callable[[], None], finished: threading.Event) -> threading.Thread:
    def follow() -> None:
        while not finished.wait(POLL_SECONDS):
            with Attempt() as attempt:
                look()
            if attempt.error:
                get_run_logger().warning("Not this time, training goes on: %s", attempt.told)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(follow,), daemon=True)
    thread.start()
    return thread


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
