"""Sample rows are balanced, reproducible and labelled as their policies say."""

import json
from collections import Counter, defaultdict
from itertools import islice
from typing import Any

import pytest

from samples.cases import RULEBOOKS, _case_number, decide, generate_rows, policy_names, policy_text
from samples.rulebook import DECISIONS

Row = dict[str, Any]
COUNT = 5_000


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(generate_rows(COUNT, seed=11))


@pytest.fixture(scope="module")
def jittered() -> list[Row]:
    return list(generate_rows(1_000, seed=11, jitter=0.4))


@pytest.fixture(scope="module")
def policy_of() -> dict[str, str]:
    return {issue: name for name, rulebook in RULEBOOKS.items() for issue in rulebook.requests}


def test_rows_have_exactly_the_documented_keys(rows: list[Row]) -> None:
    for row in rows:
        assert list(row) == ["instruction", "input", "output"]
        assert list(row["input"])[:2] == ["case_id", "issue_type"]
        assert list(row["input"])[-2:] == ["customer_message", "policy_document"]
        assert list(row["output"]) == ["decision", "reason", "customer_response", "next_action"]
        facts = list(row["input"].values())[2:-2]
        assert 4 <= len(facts) <= 6
        assert all(isinstance(fact, int | bool | str) for fact in facts)


def test_rows_have_the_answer_of_their_policy(rows: list[Row], policy_of: dict[str, str]) -> None:
    for row in rows:
        policy = policy_of[row["input"]["issue_type"]]
        assert decide(policy, row["input"]).answer() == row["output"]
        assert row["input"]["policy_document"] == policy_text(policy)


def test_rows_have_every_issue_type_equally_often(rows: list[Row]) -> None:
    issues = Counter(row["input"]["issue_type"] for row in rows)
    assert set(issues.values()) == {COUNT // 20}
    few = Counter(row["input"]["policy_document"] for row in generate_rows(30, seed=1))
    assert list(few.values()) == [3] * len(policy_names())


def test_lookup_table_of_issue_types_scores_below_half(rows: list[Row]) -> None:
    decisions: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        decisions[row["input"]["issue_type"]][row["output"]["decision"]] += 1
    assert all(set(counts) == set(DECISIONS) for counts in decisions.values())
    assert sum(max(counts.values()) for counts in decisions.values()) / COUNT < 0.5


def test_numbers_are_often_at_or_just_past_a_limit(rows: list[Row], policy_of: dict[str, str]) -> None:
    at_limit = total = 0
    for row in rows:
        limits = RULEBOOKS[policy_of[row["input"]["issue_type"]]].limits.values()
        numbers = [value for value in row["input"].values() if type(value) is int]
        total += len(numbers)
        at_limit += sum(number in limits or number - 1 in limits for number in numbers)
    assert 0.2 < at_limit / total < 0.45


def test_case_ids_never_repeat(rows: list[Row]) -> None:
    ids = [row["input"]["case_id"] for row in rows]
    assert len(set(ids)) == COUNT
    assert all(len(case_id) == len("RET-10482") for case_id in ids)


def test_case_numbers_never_repeat_beyond_five_digits() -> None:
    assert len({_case_number(index, first=77) for index in range(200_000)}) == 200_000


def test_answers_have_a_maximum_length(rows: list[Row], jittered: list[Row]) -> None:
    for output in (row["output"] for row in rows + jittered):
        assert len(output["reason"].split()) <= 16
        assert len(output["customer_response"].split()) <= 16
        assert len(output["next_action"].split()) <= 8
        assert len(json.dumps(output)) <= 330
        assert "{" not in "".join(output.values())


def test_rows_are_deterministic_per_seed() -> None:
    assert list(generate_rows(200, seed=5)) == list(generate_rows(200, seed=5))
    cases = [[row["input"]["case_id"] for row in generate_rows(200, seed)] for seed in (5, 6)]
    assert cases[0] != cases[1]


def test_rows_are_generated_lazily() -> None:
    assert len(list(islice(generate_rows(10**12, seed=1), 3))) == 3


def test_jitter_changes_limits_in_decisions_and_reasons(jittered: list[Row], policy_of: dict[str, str]) -> None:
    decisions = {row["output"]["decision"] for row in jittered}
    changed = [
        row
        for row in jittered
        if decide(policy_of[row["input"]["issue_type"]], row["input"]).decision != row["output"]["decision"]
    ]
    late = [row["output"]["reason"] for row in jittered if "refunds close after" in row["output"]["reason"]]
    assert decisions == set(DECISIONS)
    assert 0.02 < len(changed) / len(jittered) < 0.3
    assert any("close after 30 days" not in reason for reason in late)


def test_jitter_of_one_still_gives_every_row() -> None:
    assert len(list(generate_rows(1_000, seed=1, jitter=1.0))) == 1_000


@pytest.mark.parametrize("jitter", [-0.1, 1.1])
def test_jitter_outside_its_bounds_is_rejected(jitter: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        next(generate_rows(1, seed=1, jitter=jitter))


def test_negative_count_is_rejected() -> None:
    with pytest.raises(ValueError, match="got -1"):
        next(generate_rows(-1, seed=1))
