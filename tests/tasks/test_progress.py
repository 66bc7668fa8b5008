"""What the progress artifact says."""

from tasks.progress import describe_progress
from training_core.journal import Point


def test_progress_tells_step_losses_speed_memory_and_the_time_left() -> None:
    cost = {"seconds_per_step": 2.0, "tokens_per_second": 12345.6, "peak_memory_gib": 3.5}
    points = [
        Point(10, 100, 0.0, {"loss": 2.5} | cost),
        Point(20, 100, 20.0, {"eval_loss": 1.25}),
        Point(30, 100, 40.0, {"loss": 0.5} | cost),
    ]
    assert describe_progress(points) == (
        "Step 30 of 100, about 0:02:20 left: loss 0.5, held-out loss 1.25, 12,346 real tokens/s, 3.50 GiB at most"
    )


def test_the_time_for_which_a_training_lay_dead_does_not_count_as_pace() -> None:
    before, after = Point(10, 30, 0.0, {"seconds_per_step": 2.0}), Point(20, 30, 90_000.0, {"seconds_per_step": 2.0})
    assert "about 0:00:20 left" in describe_progress([before, after])


def test_a_held_out_loss_before_the_first_step_of_the_curve_is_told_alone() -> None:
    assert describe_progress([Point(5, 100, 0.0, {"eval_loss": 2.0})]) == "Step 5 of 100: held-out loss 2"
