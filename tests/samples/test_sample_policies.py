"""The text and the code of each policy agree."""

import re
from functools import cache
from random import Random
from typing import Any

import pytest

from samples.cases import RULEBOOKS, decide, policy_names, policy_text
from samples.rulebook import DECISIONS

DRAWS = 200
NUMBER_WORDS = "one two three four five six seven eight nine ten twice half dozen hundred first second"

every_policy = pytest.mark.parametrize("name", policy_names())


@cache
def sections(name: str) -> dict[int, str]:
    """Split a policy into its numbered sections, each on one line."""
    parts = re.split(r"^(\d)\. ", policy_text(name), flags=re.MULTILINE)
    return {int(number): " ".join(body.split()) for number, body in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def drawn_cases(name: str) -> list[dict[str, Any]]:
    rulebook, rng = RULEBOOKS[name], Random(3)
    return [
        {"issue_type": issue, **rulebook.draw_facts(rng, issue, rulebook.limits)}
        for issue in rulebook.requests
        for _ in range(DRAWS)
    ]


def numbers(case: dict[str, Any]) -> list[str]:
    return [name for name, value in case.items() if type(value) is int]


def test_policies_are_ten_with_two_issue_types_each() -> None:
    issues = [issue for rulebook in RULEBOOKS.values() for issue in rulebook.requests]
    assert len(policy_names()) == 10
    assert [len(rulebook.requests) for rulebook in RULEBOOKS.values()] == [2] * 10
    assert len(set(issues)) == 20


def test_unknown_policy_is_rejected_by_name() -> None:
    with pytest.raises(ValueError, match="got 'refunds'"):
        policy_text("refunds")


@every_policy
def test_policy_text_has_trainable_length_and_clean_lines(name: str) -> None:
    text = policy_text(name)
    assert 3_000 <= len(text) <= 8_000
    assert text.isascii()
    assert text.endswith(".\n")
    assert all(line == line.rstrip() for line in text.splitlines())


@every_policy
def test_policy_text_numbers_its_sections_without_gaps(name: str) -> None:
    assert list(sections(name)) == list(range(1, 10))


@every_policy
def test_policy_text_names_every_fact_and_category(name: str) -> None:
    opening = sections(name)[1]
    for case in drawn_cases(name):
        for fact, value in case.items():
            assert fact == "issue_type" or f"- {fact}:" in opening
            assert not isinstance(value, str) or value in opening


@every_policy
def test_policy_text_states_every_limit(name: str) -> None:
    for limit in RULEBOOKS[name].limits.values():
        assert re.search(rf"\b{limit}\b", policy_text(name))


@every_policy
def test_policy_text_states_decision_and_request_of_rules(name: str) -> None:
    rules = RULEBOOKS[name].rules
    for rule in rules:
        section = sections(name)[rule.section]
        requests = {other.only_for for other in rules if other.section == rule.section}
        assert section.endswith(f"Decision: {rule.decision}.")
        assert (f"({rule.only_for} only)" in section) == (requests == {rule.only_for} != {None})


@every_policy
def test_policy_sections_with_a_decision_are_the_rules(name: str) -> None:
    decided = {number for number, body in sections(name).items() if "Decision:" in body}
    assert decided == {rule.section for rule in RULEBOOKS[name].rules}


@every_policy
def test_rules_are_in_the_order_of_sections(name: str) -> None:
    order = [rule.section for rule in RULEBOOKS[name].rules]
    assert order == sorted(order)


@every_policy
def test_rules_each_decide_some_case(name: str) -> None:
    rulebook = RULEBOOKS[name]
    reached = {(case["issue_type"], decide(name, case).section) for case in drawn_cases(name)}
    for rule in rulebook.rules:
        issues = [rule.only_for] if rule.only_for else list(rulebook.requests)
        assert {(issue, rule.section) for issue in issues} <= reached


@every_policy
def test_decisions_are_all_possible_for_every_issue_type(name: str) -> None:
    met = {(case["issue_type"], decide(name, case).decision) for case in drawn_cases(name)}
    assert met == {(issue, decision) for issue in RULEBOOKS[name].requests for decision in DECISIONS}


@every_policy
def test_decision_changes_just_past_a_limit(name: str) -> None:
    cases = drawn_cases(name)
    for limit in RULEBOOKS[name].limits.values():
        pairs = [
            (decide(name, {**case, fact: limit}).decision, decide(name, {**case, fact: limit + 1}).decision)
            for case in cases
            for fact in numbers(case)
        ]
        assert any(at_limit != past_it for at_limit, past_it in pairs)


@every_policy
def test_decision_changes_only_at_a_limit(name: str) -> None:
    limits = RULEBOOKS[name].limits.values()
    for case in drawn_cases(name):
        for fact in numbers(case):
            if case[fact] not in limits:
                past_it = {**case, fact: case[fact] + 1}
                assert decide(name, case).decision == decide(name, past_it).decision


@every_policy
def test_customer_messages_are_short_and_mention_no_number(name: str) -> None:
    for request in RULEBOOKS[name].requests.values():
        assert len(set(request.messages)) == len(request.messages) >= 3
        for message in request.messages:
            words = re.findall(r"[a-z0-9']+", message.lower())
            assert len(words) <= 12
            assert not any(word.isdigit() or word in NUMBER_WORDS.split() for word in words)
