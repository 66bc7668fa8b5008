"""The held-out rows that a person should read before a promotion: what a candidate newly gets wrong, and pairs of cases
on the two sides of a limit."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from training_core.config import RunConfig
from training_core.dataset.evaluation_findings import same_decision
from training_core.evaluation.evidence import EvidenceRow
from training_core.evaluation.scores import Prediction

MOST_SHOWN, MOST_PAIRS = 20, 10

# Kinds of wrong answers, the most harmful first.
KINDS = (
    "newly approved against the policy",
    "approved against the policy",
    "newly refused against the policy",
    "newly wrong",
    "not usable",
    "refused against the policy",
    "wrong",
)

_MOST_COMPARED = 60  # rows of one policy and group among which pairs are looked for


@dataclass(frozen=True)
class WorstRow:
    """A row that the candidate got wrong: which kind, the row, both models' predictions, and its policy's section."""

    kind: str
    row: EvidenceRow
    candidate: Prediction
    reference: Prediction
    section: str


@dataclass(frozen=True)
class LimitPair:
    """Two cases of one policy and group whose expected decisions differ, and that differ by one in a number."""

    field: str
    values: tuple[float, float]
    rows: tuple[EvidenceRow, EvidenceRow]
    candidate: tuple[Prediction, Prediction]
    reference: tuple[Prediction, Prediction]


def worst_rows(
    rows: Sequence[EvidenceRow],
    candidate: Sequence[Prediction],
    reference: Sequence[Prediction],
    policies: Mapping[str, str],
    config: RunConfig,
) -> list[WorstRow]:
    """Up to 20 rows that the candidate got wrong, by kind, then in the order of the rows."""
    wrong = [
        WorstRow(_kind(own, other, config), row, own, other, cited_section(policies.get(row.policy, ""), row))
        for row, own, other in zip(rows, candidate, reference, strict=True)
        if not own.right
    ]
    return sorted(wrong, key=lambda found: KINDS.index(found.kind))[:MOST_SHOWN]


def _kind(own: Prediction, other: Prediction, config: RunConfig) -> str:
    favourable = set(map(same_decision, config.favourable_decisions))
    should, given, before = (same_decision(text) in favourable for text in (own.expected, own.decision, other.decision))
    if given and not should:
        return KINDS[1] if before else KINDS[0]
    if not own.usable:
        return KINDS[4]
    if should and not given:
        return KINDS[2] if other.right else KINDS[5]
    return KINDS[3] if other.right else KINDS[6]


def cited_section(policy: str, row: EvidenceRow) -> str:
    """The section of the policy that the expected answer names ("section 5"); empty where it names none."""
    named = re.search(r"\bsection (\d+)\b", " ".join(map(str, row.record["output"].values())), re.IGNORECASE)
    if not named:
        return ""
    section = re.search(rf"^{named[1]}\. .*?(?=^\d+\. |\Z)", policy, re.MULTILINE | re.DOTALL)
    return section[0].strip() if section else ""


def limit_pairs(
    rows: Sequence[EvidenceRow], candidate: Sequence[Prediction], reference: Sequence[Prediction]
) -> list[LimitPair]:
    """Up to 10 pairs around a limit, such as day 30 and day 31; pairs that the candidate gets wrong come first, then
    those that are alike in most fields."""
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        alike[row.policy, candidate[place].group].append(place)
    found = []
    for places in alike.values():
        for pair in combinations(places[:_MOST_COMPARED], 2):
            if candidate[pair[0]].expected != candidate[pair[1]].expected:
                found += [(_rank(pair, rows, candidate), pair, name) for name in _one_apart(*(rows[i] for i in pair))]
    best = sorted(found)[:MOST_PAIRS]
    return [
        _pair(sorted(pair, key=lambda i: _case(rows[i])[name]), name, rows, candidate, reference)
        for _, pair, name in best
    ]


def _rank(pair: tuple[int, int], rows: Sequence[EvidenceRow], candidate: Sequence[Prediction]) -> tuple[bool, int]:
    first, second = (_case(rows[place]) for place in pair)
    equal = sum(first.get(name) == second.get(name) for name in first)
    return all(candidate[place].right for place in pair), -equal


def _one_apart(first: EvidenceRow, second: EvidenceRow) -> list[str]:
    """The numbers of the case that differ by exactly one."""
    one, other = _case(first), _case(second)
    return [
        name
        for name, value in one.items()
        if _is_number(value) and _is_number(other.get(name)) and abs(value - other[name]) == 1
    ]


def _pair(
    places: Sequence[int],
    name: str,
    rows: Sequence[EvidenceRow],
    candidate: Sequence[Prediction],
    reference: Sequence[Prediction],
) -> LimitPair:
    below, above = places
    return LimitPair(
        name,
        (_case(rows[below])[name], _case(rows[above])[name]),
        (rows[below], rows[above]),
        (candidate[below], candidate[above]),
        (reference[below], reference[above]),
    )


def _case(row: EvidenceRow) -> dict[str, Any]:
    case: dict[str, Any] = row.record.get("input", {})
    return case


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
