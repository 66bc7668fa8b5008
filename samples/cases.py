"""Generates rows of e-commerce cases, each labelled by the rules of its policy."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random

from samples.bad_lines import Row, plant_bad_lines
from samples.policies import (
    digital_goods,
    fraud,
    loyalty,
    marketplace,
    payments,
    promotions,
    returns,
    shipping,
    subscriptions,
    warranty,
)
from samples.rulebook import DECISIONS, Case, Decision, Limits, Rulebook, Ruling

RULEBOOKS: dict[str, Rulebook] = {
    "returns": returns.RULEBOOK,
    "shipping": shipping.RULEBOOK,
    "promotions": promotions.RULEBOOK,
    "payments": payments.RULEBOOK,
    "fraud": fraud.RULEBOOK,
    "warranty": warranty.RULEBOOK,
    "loyalty": loyalty.RULEBOOK,
    "digital_goods": digital_goods.RULEBOOK,
    "marketplace": marketplace.RULEBOOK,
    "subscriptions": subscriptions.RULEBOOK,
}

INSTRUCTIONS = (
    "Decide this case under the policy and answer the customer.",
    "Apply the policy to this case: decision, reason, reply, next action.",
)

# Share of the usual decision of an issue type; the other three decisions share the rest. A lookup table of issue types
# is right this often at best, so a higher score comes from reading the facts.
USUAL_SHARE = 0.42

SHUFFLE_BLOCK = 1_000
ID_BLOCK = 90_000
ID_STRIDE = 7_919  # prime, so that it reaches every number of a block once


def policy_names() -> list[str]:
    """Return the names of all policies, in a fixed order."""
    return list(RULEBOOKS)


@cache
def policy_text(name: str) -> str:
    """Return the text of a policy, exactly as in its file."""
    _rulebook(name)
    return (files("samples.policies") / f"{name}.txt").read_text(encoding="utf-8")


def decide(policy: str, case: Case) -> Ruling:
    """Return the ruling of a policy on a case, which may have more keys than the facts."""
    rulebook = _rulebook(policy)
    return rulebook.decide(case, rulebook.limits)


def audit(record: Row) -> str | None:
    """Return the decision that a row's policy requires, for `label_audit`.

    None if the policy is not a sample policy, or if a fact of the case is missing or of another type.
    """
    policy = record.get("input", {}).get("policy_document")
    name = {policy_text(name).strip(): name for name in RULEBOOKS}.get(policy)
    try:
        return decide(name, record["input"]).decision if name else None
    except (KeyError, TypeError):
        return None


def generate_rows(count: int, seed: int, jitter: float = 0.0) -> Iterator[Row]:
    """Yield `count` good rows, every issue type equally often; equal arguments give equal rows.

    With `jitter` above 0, every row is decided under other limits: each limit is scaled by its own random factor
    between 1 - jitter and 1 + jitter. Such rows teach how limits work without revealing the real ones; their
    `policy_document` is unchanged.
    """
    if count < 0:
        raise ValueError(f"expected a count of 0 or more, got {count}")
    if not 0 <= jitter <= 1:
        raise ValueError(f"expected a jitter between 0 and 1, got {jitter}")
    rng = Random(seed)
    first_id = rng.randrange(ID_BLOCK)
    turns = _turns()
    for start in range(0, count, SHUFFLE_BLOCK):
        block = [
            _draw_row(rng, *turns[index % len(turns)], _case_number(index, first_id), jitter)
            for index in range(start, min(start + SHUFFLE_BLOCK, count))
        ]
        rng.shuffle(block)
        yield from block


def write_rows(path: Path, count: int, seed: int, bad_share: float) -> dict[str, int]:
    """Write `count` lines, about `bad_share` of them bad, and return the number of lines of each kind.

    An error leaves an existing file unchanged. Equal arguments give equal bytes.
    """
    kinds: Counter[str] = Counter()
    # Not complete_file, whose draft has one name: two processes may write the same sample file at once.
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            for kind, line in plant_bad_lines(generate_rows(count, seed), bad_share, seed):
                file.write(line)
                kinds[kind] += 1
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return {"lines": kinds.total(), **dict(sorted(kinds.items()))}


def _rulebook(name: str) -> Rulebook:
    if name not in RULEBOOKS:
        raise ValueError(f"expected one of the policies {', '.join(RULEBOOKS)}, got {name!r}")
    return RULEBOOKS[name]


def _turns() -> list[tuple[str, str]]:
    """Return every policy with its first issue type, then every policy with its second."""
    return [(name, list(rulebook.requests)[place]) for place in (0, 1) for name, rulebook in RULEBOOKS.items()]


def _case_number(index: int, first: int) -> int:
    """Return a scattered, unique number for a case, of five digits for the first 90,000."""
    block, place = divmod(index, ID_BLOCK)
    return 10_000 + block * ID_BLOCK + (first + place * ID_STRIDE) % ID_BLOCK


def _draw_row(rng: Random, policy: str, issue_type: str, number: int, jitter: float) -> Row:
    rulebook = RULEBOOKS[policy]
    limits = {
        name: max(1, round(limit * rng.uniform(1 - jitter, 1 + jitter))) for name, limit in rulebook.limits.items()
    }
    request = rulebook.requests[issue_type]
    facts, ruling = _draw_case(rng, rulebook, issue_type, limits)
    return {
        "instruction": rng.choice(INSTRUCTIONS),
        "input": {
            "case_id": f"{rulebook.prefix}-{number}",
            **facts,
            "customer_message": rng.choice(request.messages),
            "policy_document": policy_text(policy),
        },
        "output": ruling.answer(),
    }


def _draw_case(rng: Random, rulebook: Rulebook, issue_type: str, limits: Limits) -> tuple[Row, Ruling]:
    """Draw a decision, then cases until one gets it, so that decisions have the same shares in every policy."""
    wanted = _draw_decision(rng, rulebook.requests[issue_type].usual)
    while True:
        facts = {"issue_type": issue_type, **rulebook.draw_facts(rng, issue_type, limits)}
        ruling = rulebook.decide(facts, limits)
        if ruling.decision == wanted:
            return facts, ruling


def _draw_decision(rng: Random, usual: Decision) -> Decision:
    if rng.random() < USUAL_SHARE:
        return usual
    return rng.choice([decision for decision in DECISIONS if decision != usual])


def main() -> None:
    """Write a file of sample rows and print how many lines of each kind it has."""
    parser = argparse.ArgumentParser(prog="python -m samples.cases", description=main.__doc__)
    parser.add_argument("path", type=Path, help="the JSONL file to write")
    parser.add_argument("--rows", type=int, required=True, help="number of lines")
    parser.add_argument("--seed", type=int, required=True, help="equal seeds give equal files")
    parser.add_argument("--bad_share", type=float, required=True, help="share of bad lines, 0 to 1")
    arguments = parser.parse_args()
    summary = write_rows(arguments.path, arguments.rows, arguments.seed, arguments.bad_share)
    sys.stdout.write(f"{arguments.path}: {json.dumps(summary)}\n")


if __name__ == "__main__":
    main()
