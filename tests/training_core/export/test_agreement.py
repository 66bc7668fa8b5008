"""A model that runs elsewhere is compared with the registered adapter row by row."""

from dataclasses import replace

import pytest

from training_core.config import RunConfig
from training_core.evaluation.scores import NO_DECISION, Prediction
from training_core.export.agreement import compare_decisions

CONFIG = RunConfig(favourable_decisions=["approve"])


def predictions(count: int) -> list[Prediction]:
    return [Prediction("rows.jsonl", line, "g", "deny", "deny", True, True, "{}") for line in range(1, count + 1)]


def test_equal_decisions_agree() -> None:
    found = compare_decisions(predictions(100), predictions(100), CONFIG)
    assert (found.rows, found.equal, found.differing, found.problems) == (100, 100, [], [])


def test_two_differences_in_a_hundred_are_a_problem() -> None:
    judged = predictions(100)
    other = [replace(one, decision="escalate") for one in judged[:2]] + judged[2:]
    found = compare_decisions(judged, other, CONFIG)
    assert found.differing == list(zip(judged[:2], other[:2], strict=True))
    assert (found.decides_alike, found.approves_no_more) == (False, True)
    assert found.problems == ["expected equal decisions in at least 99% of the rows, got 98 of 100 (98.0%)"]


def test_one_more_false_approval_is_a_problem() -> None:
    judged = predictions(1000)
    other = [replace(judged[0], decision="approve"), *judged[1:]]
    found = compare_decisions(judged, other, CONFIG)
    assert "false approvals" in found.problems[0] and (found.decides_alike, found.approves_no_more) == (True, False)


def test_unusable_answers_on_both_sides_are_equal() -> None:
    broken = [replace(one, decision=NO_DECISION, usable=False) for one in predictions(3)]
    assert compare_decisions(broken, broken, CONFIG).equal == 3


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"expected the same rows, got rows.jsonl:1 and rows.jsonl:2"):
        compare_decisions(predictions(2), predictions(2)[::-1], CONFIG)
