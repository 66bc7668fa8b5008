"""Reports a running training from threads of their own, so that a slow server or store delays no training step."""

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from tasks.artifact_store import save_progress
from tasks.recovery import POLL_SECONDS, end_when_replaced
from tasks.refs import RunRef
from tasks.tracking import send_points
from training_core.config import RunConfig
from training_core.training.journal import Point, read_journal

# What Prefect's client, MLflow's client (see ``send_points``) and the artifact store raise when they cannot be reached.
_EXPECTED_ERRORS = (httpx.HTTPError, PrefectException, OSError)

_FORMATS = {
    "loss": "loss {:.4g}",
    "eval_loss": "held-out loss {:.4g}",
    "tokens_per_second": "{:,.0f} tokens before sharing/s",
    "peak_memory_gib": "{:.2f} GiB peak memory",
}


@dataclass
class _Reporter:
    config: RunConfig
    run: RunRef
    attempt: tuple[str, int]
    sent: int = 0
    saved_step: int = 0
    artifact: UUID | None = None

    def catch_up(self) -> None:
        """Send the points that are new since the last call."""
        points = read_journal(Path(self.run.path) / "journal.jsonl")
        send_points(self.config, self.run.tracking_run_id, points[self.sent :])
        if len(points) > self.sent:
            self._show_progress(points)
        self.sent = len(points)

    def upload_checkpoint(self) -> None:
        """Upload the newest checkpoint unless the artifact store has it."""
        self.saved_step = save_progress(Path(self.run.path), self.run.fingerprint, self.saved_step)

    def report(self) -> None:
        """End this process if its run was taken over, else send new points."""
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
    """While the body trains, send its curve to MLflow, its progress to Prefect and its checkpoints to the artifact
    store, and end the process when its run was taken over by another.

    What fails is logged and repeated after ``POLL_SECONDS``. When the body is done, all points and the last checkpoint
    are sent once more, and this time errors are raised: ``httpx.HTTPError`` or ``PrefectException`` from Prefect,
    ``ConnectionError`` from MLflow, ``OSError`` from the store. When the body raises, such as at SIGTERM, the last
    checkpoint is sent too, but only the body's exception is raised.
    """
    reporter, finished = _Reporter(config, run, (flow_run.id, flow_run.run_count)), threading.Event()
    # Two threads, so that a slow upload does not keep a replaced process alive.
    threads = [_repeat(action, finished) for action in (reporter.report, reporter.upload_checkpoint)]
    try:
        yield
    finally:
        finished.set()
        for thread in threads:
            thread.join()
        # Also after SIGTERM: a machine that is taken away has saved a checkpoint, which the next one resumes from.
        _attempt(reporter.upload_checkpoint, "The last checkpoint may be missing in the artifact store")
    reporter.catch_up()
    reporter.upload_checkpoint()


def _repeat(action: Callable[[], None], finished: threading.Event) -> threading.Thread:
    def loop() -> None:
        while not finished.wait(POLL_SECONDS):
            _attempt(action, "Training continues; will try again")

    thread = threading.Thread(target=contextvars.copy_context().run, args=(loop,), daemon=True)
    thread.start()
    return thread


def _attempt(action: Callable[[], None], consequence: str) -> None:
    """Act, and log an expected error with what it means for the run."""
    try:
        action()
    except _EXPECTED_ERRORS as error:
        get_run_logger().warning("%s: %s: %s", consequence, type(error).__name__, error)


def describe_progress(points: list[Point]) -> str:
    """Step, time left at the current speed, latest losses, speed and peak memory, as one line."""
    last = points[-1]
    latest = {name: value for point in points for name, value in point.values.items()}
    values = [form.format(latest[name]) for name, form in _FORMATS.items() if name in latest]
    place = f"Step {last.step} of {last.of_steps}"
    if "seconds_per_step" in latest:  # from the first loss on; the held-out loss may be there before
        left = latest["seconds_per_step"] * (last.of_steps - last.step)
        place += f", about {timedelta(seconds=round(left))} left"
    return f"{place}: {', '.join(values)}"
