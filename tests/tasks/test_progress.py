"""Reports of a running training, also when servers and stores fail, and the text of the progress artifact."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
from prefect.exceptions import ObjectNotFound, TerminationSignal

from tasks import artifact_store, progress
from tasks.progress import describe_progress, follow_journal
from tasks.refs import RunRef
from training_core.config import RunConfig
from training_core.training.journal import Point


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRef:
    """A run without servers that is reported all the time."""
    for name in ("end_when_replaced", "send_points"):
        monkeypatch.setattr(progress, name, lambda *_: None)
    monkeypatch.delenv(artifact_store.VARIABLE, raising=False)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("run"))
    return RunRef("i" * 64, str(tmp_path), "base", "run")


def failing_once(error: Exception, then: threading.Event) -> Callable[..., int]:
    failures = [error]

    def act(*_: object) -> int:
        if failures:
            raise failures.pop()
        then.set()
        return 10

    return act


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("end_when_replaced", httpx.ConnectError("connection refused")),
        ("end_when_replaced", ObjectNotFound(ValueError("404"), "the run was deleted")),
        ("send_points", ConnectionError("the tracking server did not store the loss curve")),
        ("save_progress", OSError("EndpointConnectionError: could not connect")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_progress_errors_are_logged_and_retried(
    action: str, error: Exception, run: RunRef, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    repeated = threading.Event()
    monkeypatch.setattr(progress, action, failing_once(error, then=repeated))
    with follow_journal(RunConfig(), run):
        assert repeated.wait(timeout=10)
    assert caplog.messages == [f"Training continues; will try again: {type(error).__name__}: {error}"]


def test_progress_raises_when_the_last_upload_fails(run: RunRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "POLL_SECONDS", 60)
    monkeypatch.setattr(progress, "save_progress", Mock(side_effect=OSError("no store")))
    with pytest.raises(OSError, match="no store"), follow_journal(RunConfig(), run):
        pass


def test_interrupted_training_uploads_its_last_checkpoint(run: RunRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "POLL_SECONDS", 60)
    upload = Mock(return_value=10)
    monkeypatch.setattr(progress, "save_progress", upload)
    with pytest.raises(TerminationSignal), follow_journal(RunConfig(), run):
        raise TerminationSignal(signal.SIGTERM)
    upload.assert_called_once()


def test_failed_upload_hides_no_interruption(
    run: RunRef, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "POLL_SECONDS", 60)
    monkeypatch.setattr(progress, "save_progress", failing_once(OSError("no store"), then=threading.Event()))
    with pytest.raises(KeyboardInterrupt), follow_journal(RunConfig(), run):
        raise KeyboardInterrupt
    assert caplog.messages == ["The last checkpoint may be missing in the artifact store: OSError: no store"]


def test_progress_shows_step_losses_speed_memory_and_time_left() -> None:
    cost = {"seconds_per_step": 2.0, "tokens_per_second": 12345.6, "peak_memory_gib": 3.5}
    points = [
        Point(10, 100, 0.0, {"loss": 2.5} | cost),
        Point(20, 100, 20.0, {"eval_loss": 1.25}),
        Point(30, 100, 40.0, {"loss": 0.5} | cost),
    ]
    assert describe_progress(points) == (
        "Step 30 of 100, about 0:02:20 left: "
        "loss 0.5, held-out loss 1.25, 12,346 tokens before sharing/s, 3.50 GiB peak memory"
    )


def test_progress_ignores_downtime_in_the_time_left() -> None:
    before, after = Point(10, 30, 0.0, {"seconds_per_step": 2.0}), Point(20, 30, 90_000.0, {"seconds_per_step": 2.0})
    assert "about 0:00:20 left" in describe_progress([before, after])


def test_progress_without_a_step_shows_the_held_out_loss() -> None:
    assert describe_progress([Point(5, 100, 0.0, {"eval_loss": 2.0})]) == "Step 5 of 100: held-out loss 2"
