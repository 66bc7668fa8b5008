"""Policies as code: limits, requests, ordered rules, and how cases are drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, get_args

Decision = Literal["Eligible", "Not Eligible", "Escalate", "In Progress"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)

Case = Mapping[str, Any]
Limits = Mapping[str, int]

# A uniform draw would rarely hit a limit, where decisions change; this share of the numbers is drawn there.
BOUNDARY_SHARE = 0.25
FLAG_SHARE = 0.2


@dataclass(frozen=True)
class Ruling:
    """The decision of a policy on one case, its texts, and the section that decides."""

    section: int
    decision: Decision
    reason: str
    customer_response: str
    next_action: str

    def answer(self) -> dict[str, str]:
        """Return the four fields of a row's output."""
        return {
            "decision": self.decision,
            "reason": self.reason,
            "customer_response": self.customer_response,
            "next_action": self.next_action,
        }


@dataclass(frozen=True)
class Rule:
    """One section with a decision; its texts may use facts, limits and `{request}` in braces."""

    section: int
    decision: Decision
    when: Callable[[Case, Limits], bool]
    reason: str
    customer_response: str
    next_action: str
    only_for: str | None = None

    def applies(self, case: Case, limits: Limits) -> bool:
        """Return whether this section decides the case, if no earlier one does."""
        return self.only_for in (None, case["issue_type"]) and self.when(case, limits)


@dataclass(frozen=True)
class Request:
    """One issue type: what the customer asks for, its usual decision, and how customers word it."""

    noun: str
    usual: Decision
    messages: tuple[str, ...]


@dataclass(frozen=True)
class Rulebook:
    """A whole policy as code; its text file states the same rules in words."""

    prefix: str
    limits: Limits
    requests: Mapping[str, Request]
    draw_facts: Callable[[Random, str, Limits], dict[str, Any]]
    rules: tuple[Rule, ...]

    def decide(self, case: Case, limits: Limits) -> Ruling:
        """Apply the rules in order; the first that matches decides, and one always does."""
        request = self.requests[case["issue_type"]]
        rule = next(rule for rule in self.rules if rule.applies(case, limits))
        words = {**limits, **case, "request": request.noun}
        return Ruling(
            section=rule.section,
            decision=rule.decision,
            reason=f"{rule.reason.format_map(words)} (section {rule.section}).",
            customer_response=rule.customer_response.format_map(words),
            next_action=rule.next_action.format_map(words),
        )


def otherwise(case: Case, limits: Limits) -> bool:
    """Match every case: the condition of a last section."""
    return True


def near(rng: Random, limit: int, least: int = 0) -> int:
    """Draw a number from `least` to about twice the limit, often exactly at the limit or one past it."""
    if rng.random() < BOUNDARY_SHARE:
        return limit + rng.randrange(2)
    return rng.randint(least, max(least, 2 * limit + 1))


def seldom(rng: Random) -> bool:
    """Draw a fact that is true for a minority of cases."""
    return rng.random() < FLAG_SHARE
