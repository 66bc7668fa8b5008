"""The threshold for automatic decisions keeps its promise, and says when the rows cannot keep one."""

from pathlib import Path

import numpy as np
import pytest

from training_core.config import RunConfig
from training_core.evaluation.handover import (
    NOTHING_AUTOMATIC,
    fewest_rows,
    find_threshold,
    hand_over,
    is_handed_over,
    upper_bound,
)
from training_core.evaluation.reliability import Bin, calibration_error, draw_reliability, reliability_bins
from training_core.evaluation.scores import Prediction


def found(confidence: float | None, decision: str = "Eligible", expected: str = "Eligible") -> Prediction:
    return Prediction("rows.jsonl", 1, "g", expected, decision, True, True, "{}", confidence=confidence)


def cases(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cases whose decision is wrongly favourable with a probability of 1 - confidence."""
    confidence = 1 - 0.5 * rng.beta(0.3, 1.0, rows)
    return confidence, rng.random(rows) > confidence


def test_bound_on_errors_holds_in_nearly_all_splits() -> None:
    rng = np.random.default_rng(1)
    confidence, errors = cases(rng, 200_000)
    thresholds = [find_threshold(*cases(rng, 600), 0.05).threshold for _ in range(100)]
    assert len({threshold for threshold in thresholds if threshold < 1}) > 50
    assert sum(errors[confidence > threshold].mean() < 0.05 for threshold in thresholds if threshold < 1) >= 95 - sum(
        threshold == 1 for threshold in thresholds
    )


def test_too_few_rows_hand_every_case_over() -> None:
    assert fewest_rows(0, 0.005) == 598
    rule = find_threshold(np.full(597, 0.9), np.zeros(597, bool), 0.005)
    assert (rule.threshold, rule.automatic) == (NOTHING_AUTOMATIC, 0)
    assert "At least 598 held-out rows" in str(rule)
    rule = find_threshold(np.linspace(0.5, 1, 598), np.zeros(598, bool), 0.005)
    assert (rule.threshold, rule.automatic) == (0.0, 598)
    assert rule.bound == upper_bound(0, 598) < 0.005


def test_equal_confidences_are_above_the_threshold_together() -> None:
    rule = find_threshold(np.repeat([1.0, 0.9, 0.5], 700), np.repeat([False, False, True], 700), 0.005)
    assert (rule.threshold, rule.automatic, rule.errors) == (0.5, 1400, 0)
    errors = np.repeat([False, True, False], 700)
    assert find_threshold(np.repeat([1.0, 0.9, 0.5], 700), errors, 0.005).automatic == 700


def test_tied_rows_count_once_and_only_expensive_errors() -> None:
    config = RunConfig(max_automatic_error=0.5)
    rows = [found(0.9), found(0.9, expected="Not Eligible"), found(0.9, "Not Eligible", "Eligible"), found(None)]
    rows += [found(0.8) for _ in range(8)]
    rule = hand_over(rows, [0, 0, *range(1, 11)], config)
    assert rule is not None
    assert (rule.rows, rule.errors, rule.automatic) == (11, 0, 10)
    assert hand_over(rows, range(12), RunConfig()) is None


def test_case_without_a_confidence_is_handed_over() -> None:
    marked = [is_handed_over(confidence, 0.7) for confidence in (None, 0.7, 0.71)]
    assert marked == [True, True, False]
    assert not is_handed_over(None, None)
    assert is_handed_over(1.0, NOTHING_AUTOMATIC)


def test_calibration_error_is_the_distance_from_the_diagonal() -> None:
    sure = [found(0.95, expected="Eligible" if right else "No") for right in (True, True, True, False)]
    unsure = [found(0.55, expected="Eligible" if right else "No") for right in (True, False)]
    bins = reliability_bins([*sure, *unsure, found(None)])
    assert [(one.rows, one.accuracy) for one in bins] == [(2, 0.5), (4, 0.75)]
    assert calibration_error(bins) == pytest.approx((2 * 0.05 + 4 * 0.2) / 6)


def test_reliability_picture_is_drawn_where_there_is_a_confidence(tmp_path: Path) -> None:
    draw_reliability([found(None)], tmp_path / "none.png")
    draw_reliability([found(1.0), found(0.3, expected="No")], tmp_path / "some.png")
    assert [path.name for path in tmp_path.iterdir()] == ["some.png"]


def test_few_rows_of_a_range_have_a_wide_interval() -> None:
    assert Bin(1, 0.9, 1.0).bounds == pytest.approx((0.793, 0.0), abs=1e-3)
    assert Bin(1000, 0.9, 0.9).bounds == pytest.approx((0.020, 0.017), abs=1e-3)
