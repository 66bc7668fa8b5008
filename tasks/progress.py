"""Shows a training from outside: a thread of its own reads the journal, so that no server can stall a step."""

import contextvars
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

from tasks.registry import send_points
from training_core.config import RunConfig
from training_core.journal import Point, read_journal

SECONDS_BETWEEN_LOOKS = 5


@dataclass
class _Follower:
    config: RunConfig
    tracking_run_id: str
    journal: Path
    sent: int = 0
    artifact: UUID | None = None

    def catch_up(self) -> None:
        """Send what is new since the last look."""
        points = read_journal(self.journal)
        send_points(self.config, self.tracking_run_id, points[self.sent :])
        if len(points) > self.sent:
            self._show_progress(points)
        self.sent = len(points)

    def follow(self, finished: threading.Event) -> None:
        while not finished.wait(SECONDS_BETWEEN_LOOKS):
            try:
                self.catch_up()
            except (ConnectionError, httpx.HTTPError) as error:
                get_run_logger().warning("Progress not shown this time, training goes on: %s", error)

    def _show_progress(self, points: list[Point]) -> None:
        share, text = 100 * points[-1].step / points[-1].of_steps, describe_progress(points)
        if self.artifact:
            update_progress_artifact(self.artifact, share, text)
        else:
            artifact = create_progress_artifact(share, key="training-progress", description=text)
            assert isinstance(artifact, UUID)  # a coroutine only where the caller is one
            self.artifact = artifact


@contextmanager
def follow_journal(config: RunConfig, tracking_run_id: str, journal: Path) -> Iterator[None]:
    """Show a training's curve in MLflow and its progress in Prefect while the body runs.

    Servers that do not answer are tried again at the next look; after the body all points must arrive. Raises
    ``ConnectionError`` or ``httpx.HTTPError`` when they do not.
    """
    follower, finished = _Follower(config, tracking_run_id, journal), threading.Event()
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
    """Where a training is, its latest loss, and when it will be done at its pace so far."""
    first, last = points[0], points[-1]
    losses = [f"{name} {p.values[name]:.4g}" for p in points[-4:] for name in ("loss", "eval_loss") if name in p.values]
    pace = (last.time - first.time) / max(1, last.step - first.step)
    left = timedelta(seconds=round(pace * (last.of_steps - last.step)))
    return f"Step {last.step} of {last.of_steps}, {', '.join(losses[-2:])}, about {left} left"
