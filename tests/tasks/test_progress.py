"""A training is shown and saved from outside, whatever servers and stores do; and what the progress artifact says."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import artifact_store, progress
from tasks.progress import describe_progress, follow_journal
from tasks.refs import RunRef
from training_core.config import RunConfig
from training_core.training.journal import Point


class EndpointConnectionError(Exception):
    """As botocore's and aiohttp's errors are: no ``OSError``."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRef:
    """A run with no servers, looked at all the time."""
    for name in ("end_when_replaced", "send_points"):
        monkeypatch.setattr(progress, name, lambda *_: None)
    monkeypatch.delenv(artifact_store.VARIABLE, raising=False)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("run"))
    return RunRef("i" * 64, str(tmp_path), "base", "run")


def failing_twice(then: threading.Event) -> Callable[..., int]:
    failures = [EndpointConnectionError("nobody listens"), EndpointConnectionError()]

    def look(*_: object) -> int:
        if failures:
            raise failures.pop()
        then.set()
        return 10

    return look


@pytest.mark.parametrize("look", ["end_when_replaced", "save_progress"])
def test_a_look_that_fails_in_a_way_of_its_own_is_told_and_tried_again(
    look: str, run: RunRef, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looked = threading.Event()
    monkeypatch.setattr(progress, look, failing_twice(then=looked))
    with follow_journal(RunConfig(), run):
        assert looked.wait(timeout=10)
    assert caplog.messages == [
        "Not this time, training goes on: EndpointConnectionError: ",
        "Not this time, training goes on: EndpointConnectionError: nobody listens",
    ]


def test_a_checkpoint_that_is_not_safe_after_the_training_is_an_error(
    run: RunRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "POLL_SECONDS", 60)
    monkeypatch.setattr(progress, "save_progress", failing_twice(then=threading.Event()))
    with pytest.raises(EndpointConnectionError), follow_journal(RunConfig(), run):
        pass


def test_progress_tells_step_losses_speed_memory_and_the_time_left() -> None:
    cost = {"seconds_per_step": 2.0, "tokens_per_second": 12345.6, "peak_memory_gib": 3.5}
    points = [
        Point(10, 100, 0.0, {"loss": 2.5} | cost),
        Point(20, 100, 20.0, {"eval_loss": 1.25}),
        Point(30, 100, 40.0, {"loss": 0.5} | cost),
    ]
    assert describe_progress(points) == (
        "Step 30 of 100, about 0:02:20 left: "
        "loss 0.5, held-out loss 1.25, 12,346 tokens before sharing/s, 3.50 GiB at most"
    )


def test_the_time_for_which_a_training_lay_dead_does_not_count_as_pace() -> None:
    before, after = Point(10, 30, 0.0, {"seconds_per_step": 2.0}), Point(20, 30, 90_000.0, {"seconds_per_step": 2.0})
    assert "about 0:00:20 left" in describe_progress([before, after])


def test_a_held_out_loss_before_the_first_step_of_the_curve_is_told_alone() -> None:
    assert describe_progress([Point(5, 100, 0.0, {"eval_loss": 2.0})]) == "Step 5 of 100: held-out loss 2"
