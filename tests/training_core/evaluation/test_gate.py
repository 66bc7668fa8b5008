"""An adapter becomes champion when paired tests show it is better and no guard is hurt."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from samples.cases import generate_rows
from training_core.config import RunConfig
from training_core.evaluation.evidence import GROUP, POLICY, Evidence, EvidenceRow, ModelAnswers, evidence_of
from training_core.evaluation.gate import (
    BECOMES_CHAMPION,
    GATE_SETTINGS,
    STAYS_CANDIDATE,
    UNDECIDED,
    Verdict,
    decide,
    is_failing,
)
from training_core.evaluation.scores import NO_DECISION, Prediction
from training_core.evaluation.text_scores import AnswerJudge
from training_core.user_functions import UserFunction

Record = dict[str, Any]
CONFIG = RunConfig()
RECORDS = list(generate_rows(300, seed=3))
ROWS = [EvidenceRow(place, record["input"]["policy_document"][:12], record) for place, record in enumerate(RECORDS)]
DECISIONS = sorted({record["output"]["decision"] for record in RECORDS})


def wrong_answer(place: int) -> Record:
    """The whole answer of another row, with another decision."""
    expected = RECORDS[place]["output"]["decision"]
    others = (RECORDS[(place + step) % len(RECORDS)]["output"] for step in range(1, len(RECORDS)))
    return next(dict(other) for other in others if other["decision"] != expected)


def refusing(place: int) -> Record:
    """A wrong answer that grants nothing, so that no false approval depends on chance."""
    return wrong_answer(place) | {"decision": next(d for d in ("Escalate", "In Progress") if d != expected(place))}


def expected(place: int) -> str:
    return RECORDS[place]["output"]["decision"]


def answers(right_share: float, seed: int) -> list[Record]:
    """Complete answers of which so many are right."""
    right = np.random.default_rng(seed).random(len(RECORDS)) < right_share
    return [dict(RECORDS[i]["output"]) if right[i] else refusing(i) for i in range(len(RECORDS))]


def predictions(given: list[Record] | list[str], judge: AnswerJudge | None = None) -> list[Prediction]:
    """Answers as the evaluation judges them."""
    found = []
    for place, (record, answer) in enumerate(zip(RECORDS, given, strict=True)):
        text = answer if isinstance(answer, str) else json.dumps(answer)
        judged = (judge or AnswerJudge()).judge(record, text)
        decision = NO_DECISION if judged.decision is None else judged.decision
        group, verdict = record["input"]["issue_type"], (decision, judged.parsed, judged.usable)
        found.append(
            Prediction("f", place, group, expected(place), *verdict, text, judged.text_scores, judged.problems)
        )
    return found


@pytest.fixture(scope="module")
def rivals() -> dict[str, list[Prediction]]:
    shares = {"base": 0.3, "champion": 0.6, "majority": 0.28, "lookup table": 0.42}
    return {name: predictions(answers(share, seed)) for seed, (name, share) in enumerate(shares.items())}


@pytest.fixture(scope="module")
def good() -> list[Record]:
    return answers(0.8, seed=9)


def verdict(rivals: dict[str, list[Prediction]], given: Any, config: RunConfig = CONFIG, **counts: int) -> Verdict:
    return decide(evidence_of(ROWS, rivals | {"candidate": predictions(given)}), config, **counts)


def violated(found: Verdict) -> list[str]:
    return [check.name for check in found.checks if check.state == "violated"]


def still_open(found: Verdict) -> list[str]:
    return [check.name for check in found.checks if check.state == "not shown"]


# Outcomes


def test_promotion_of_a_better_adapter(rivals: dict[str, list[Prediction]], good: list[Record]) -> None:
    found = verdict(rivals, good)
    assert found.outcome == BECOMES_CHAMPION
    assert all(found.p_values[f"better than {rival}"] < 0.05 for rival in rivals)
    assert str(found).startswith("becomes champion: every check holds; smallest gain +")
    assert json.loads(json.dumps(asdict(found)))["p_values"] == found.p_values


def test_promotion_without_a_champion(rivals: dict[str, list[Prediction]], good: list[Record]) -> None:
    first = {name: found for name, found in rivals.items() if name != "champion"}
    assert verdict(first, good).outcome == BECOMES_CHAMPION


def test_promotion_needs_a_significant_gain(rivals: dict[str, list[Prediction]]) -> None:
    """A few rows more where the two disagree on half of them are chance."""
    found = verdict(rivals, answers(0.62, seed=9))
    champion = next(check for check in found.checks if check.name == "better than champion")
    assert champion.test and champion.test.gain > 0
    assert found.outcome == UNDECIDED
    assert "better than champion" in still_open(found)
    assert "rows show it in 80% of comparisons" in str(found)


def test_undecided_rise_says_how_many_rows_decide(rivals: dict[str, list[Prediction]]) -> None:
    """Copied so often, the same rows do decide."""
    models = rivals | {"candidate": predictions(answers(0.9, seed=9))}
    for place in range(40):  # as many false approvals as the champion, on other rows
        other = "candidate" if place % 2 else "champion"
        row = [i for i in range(len(ROWS)) if expected(i) != "Eligible"][place]
        models[other] = list(models[other])
        models[other][row] = replace(models[other][row], decision="Eligible")
    (check,) = [c for c in decide(evidence_of(ROWS, models), CONFIG).checks if c.name == "false approvals"]
    assert check.state == "not shown"
    needed = int(re.search(r"about ([\d,]+) held-out rows show", check.sentence)[1].replace(",", ""))  # type: ignore[index]
    times = -(-needed // len(ROWS))
    many = {name: [*found] * times for name, found in models.items()}
    rows = [replace(row, tie=place) for place, row in enumerate([*ROWS] * times)]
    (check,) = [c for c in decide(evidence_of(rows, many), CONFIG).checks if c.name == "false approvals"]
    assert check.state == "holds"


def test_promotion_refused_to_a_worse_adapter(rivals: dict[str, list[Prediction]]) -> None:
    found = verdict(rivals, answers(0.45, seed=9))
    assert found.outcome == STAYS_CANDIDATE
    assert "better than champion" in violated(found)


def test_promotion_needs_the_minimum_improvement(rivals: dict[str, list[Prediction]], good: list[Record]) -> None:
    assert verdict(rivals, good, replace(CONFIG, min_improvement=0.05)).outcome == BECOMES_CHAMPION
    assert verdict(rivals, good, replace(CONFIG, min_improvement=0.22)).outcome == UNDECIDED
    assert verdict(rivals, good, replace(CONFIG, min_improvement=0.5)).outcome == STAYS_CANDIDATE


def test_gate_gives_equal_verdicts_on_equal_evidence(rivals: dict[str, list[Prediction]], good: list[Record]) -> None:
    assert verdict(rivals, good, versions_judged=3) == verdict(rivals, good, versions_judged=3)


def test_gate_settings_are_all_that_a_verdict_reads() -> None:
    """The cache key of a verdict is made from them."""
    read: set[str] = set()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return getattr(CONFIG, name)

    better = {"candidate": [0.9, 0], "champion": [0.6, 1], "base": [0.3, 2], "lookup table": [0.4, 3]}
    decide(evidence_of(ROWS, {name: predictions(answers(*how)) for name, how in better.items()}), Watched())  # type: ignore[arg-type]
    assert read == set(GATE_SETTINGS)


# Guards

PLANTED: dict[str, tuple[Callable[[int, Record], Any], str]] = {
    "missing fields": (lambda _, own: {"decision": own["decision"], "reason": own["reason"]}, "usable answers"),
    "a decision and nothing else": (lambda _, own: {"decision": own["decision"]}, "usable answers"),
    "an extra key": (lambda _, own: own | {"card_number": "4111 1111 1111 1111"}, "usable answers"),
    "empty texts": (lambda _, own: own | {"reason": ""}, "usable answers"),
    "three in a hundred unusable": (lambda i, own: "sorry" if i % 33 == 0 else own, "usable answers"),
    "gibberish": (lambda _, own: own | dict.fromkeys(("reason", "customer_response"), "qw zx vk"), "texts"),
    "insults": (lambda _, own: own | {"customer_response": "You are all idiots. Do not write again."}, "texts"),
    "every favourable refused": (
        lambda _, own: own | {"decision": "Escalate"} if own["decision"] == "Eligible" else own,
        "false refusals",
    ),
    "more false approvals": (
        lambda i, own: own | {"decision": "Eligible"} if expected(i) != "Eligible" and i % 8 == 0 else own,
        "false approvals",
    ),
}


@pytest.mark.parametrize("harm", PLANTED)
def test_promotion_guard_catches(harm: str, rivals: dict[str, list[Prediction]]) -> None:
    """In an adapter that is better by 35 points otherwise."""
    plant, guard = PLANTED[harm]
    best = answers(0.95, seed=8)
    assert verdict(rivals, best).outcome == BECOMES_CHAMPION
    found = verdict(rivals, [plant(place, own) for place, own in enumerate(best)])
    assert found.outcome == STAYS_CANDIDATE
    assert guard in violated(found)


@pytest.mark.parametrize("harm", ["gibberish", "insults"])
def test_promotion_guard_catches_texts_without_a_champion(harm: str, rivals: dict[str, list[Prediction]]) -> None:
    """The first adapter's texts are compared with those that a lookup table copies."""
    plant, guard = PLANTED[harm]
    first = {name: found for name, found in rivals.items() if name != "champion"}
    found = verdict(first, [plant(place, own) for place, own in enumerate(answers(0.95, seed=8))])
    assert guard in violated(found)


def test_better_texts_do_not_make_up_for_gibberish(rivals: dict[str, list[Prediction]]) -> None:
    texts = ("reason", "customer_response", "next_action")
    halved = [own | {name: own[name][: len(own[name]) // 2] for name in texts} for own in answers(0.6, seed=1)]
    worse = rivals | {"champion": predictions(halved)}
    best = answers(0.95, seed=8)
    assert verdict(worse, best).outcome == BECOMES_CHAMPION
    some = [own | dict.fromkeys(texts, "qw zx vk") if place % 20 == 0 else own for place, own in enumerate(best)]
    found = verdict(worse, some)
    assert violated(found) == ["texts"] and "more answers in which no text fits" in found.reason


def test_promotion_allows_a_small_loss_in_the_texts(rivals: dict[str, list[Prediction]]) -> None:
    """A letter less in every text is no harm, although every row shows it."""
    best = answers(0.95, seed=8)
    found = verdict(rivals, [own | {"reason": own["reason"][:-1]} for own in best])
    assert found.outcome == BECOMES_CHAMPION and found.p_values["texts"] > 0.5


@pytest.mark.parametrize("slices", ["policy", "group", "channel"])
def test_promotion_guard_catches_a_collapsed_slice(slices: str, rivals: dict[str, list[Prediction]]) -> None:
    """All wrong in one slice, better everywhere else."""
    values = {
        "policy": [row.policy for row in ROWS],
        "group": ["warranty_claim" if row.policy == ROWS[0].policy else "other" for row in ROWS],
        "channel": [("web", "phone", "mail")[row.tie % 3] for row in ROWS],
    }[slices]
    victim = max(set(values) - {"", "other"}, key=values.count)
    better = answers(0.97, seed=8)
    given = [refusing(i) if value == victim else better[i] for i, value in enumerate(values)]
    models = rivals | {"candidate": predictions(given)}
    evidence = evidence_of(ROWS, models)
    place = {"policy": POLICY, "group": GROUP}.get(slices, slices)
    evidence = replace(evidence, fields={place: np.array(values)})
    found = decide(evidence, replace(CONFIG, slice_fields=("channel",) if slices == "channel" else ()))
    assert violated(found) == ["slices"]
    assert victim in str(found)


def test_promotion_refused_to_an_adapter_without_effect(rivals: dict[str, list[Prediction]]) -> None:
    found = verdict(rivals, [one.answer for one in rivals["base"]])
    assert found.outcome == STAYS_CANDIDATE
    assert "effect" in violated(found)


def test_promotion_refused_on_too_few_rows(rivals: dict[str, list[Prediction]]) -> None:
    """99 rows, all right: still not promoted, and the verdict says how many rows are needed."""
    few = {name: found[:99] for name, found in rivals.items()}
    perfect = predictions([dict(record["output"]) for record in RECORDS])[:99]
    found = decide(evidence_of(ROWS[:99], few | {"candidate": perfect}), CONFIG)
    assert "enough rows" in still_open(found) and found.outcome == UNDECIDED
    assert "99 held-out rows were answered; at least 100 are needed" in found.paragraphs[0]


def test_promotion_counts_tied_rows_once(rivals: dict[str, list[Prediction]]) -> None:
    """A gain that is significant over 300 rows is not one over the 10 customers whom the rows are about."""
    better = rivals | {"candidate": predictions(answers(0.72, seed=9))}
    alone = decide(evidence_of(ROWS, better), CONFIG).p_values["better than champion"]
    order = np.argsort([b.right - a.right for a, b in zip(rivals["champion"], better["candidate"], strict=True)])
    ties = np.empty(len(ROWS), int)
    ties[order] = np.arange(len(ROWS)) // 30
    tied = [replace(row, tie=int(tie)) for row, tie in zip(ROWS, ties, strict=True)]
    found = decide(evidence_of(tied, better), CONFIG)
    assert alone < 0.05 < found.p_values["better than champion"]
    assert "10 ties of rows" in " ".join(found.paragraphs)


def test_promotion_guard_catches_audit_problems(rivals: dict[str, list[Prediction]], good: list[Record]) -> None:
    def audit(_: Record, answer: Record) -> str | None:
        return None if "section" in answer["reason"] else "no section"

    judge = AnswerJudge(audit=UserFunction("answer_audit", "rules:audit", audit))
    named = {name: predictions([one.answer for one in found], judge) for name, found in rivals.items()}
    assert (
        decide(evidence_of(ROWS, named | {"candidate": predictions(good, judge)}), CONFIG).outcome == BECOMES_CHAMPION
    )
    silent = [own | {"reason": own["reason"].replace("section", "sec.")} for own in good]
    found = decide(evidence_of(ROWS, named | {"candidate": predictions(silent, judge)}), CONFIG)
    assert "answer audit" in violated(found)


def test_promotion_guards_take_capitals_and_edges_as_one_decision(rivals: dict[str, list[Prediction]]) -> None:
    best = answers(0.95, seed=8)
    given = [
        own | {"decision": " ELIGIBLE"} if expected(i) != "Eligible" and i % 8 == 0 else own
        for i, own in enumerate(best)
    ]
    assert "false approvals" in violated(verdict(rivals, given))


# Reused rows, and the champion itself


def test_gate_counts_what_rows_have_judged(rivals: dict[str, list[Prediction]], good: list[Record]) -> None:
    assert not any("have judged" in text for text in verdict(rivals, good).paragraphs)
    some = verdict(rivals, good, versions_judged=7, versions_promoted=3)
    assert "These held-out rows have judged 7 versions and chosen 3." in some.paragraphs
    assert not some.fresh_rows_wanted
    many = verdict(rivals, good, versions_judged=20, versions_promoted=3)
    assert many.fresh_rows_wanted and any("give fresh rows" in text for text in many.paragraphs)


def test_gate_notices_a_failing_champion(rivals: dict[str, list[Prediction]], good: list[Record]) -> None:
    assert not verdict(rivals, good).champion_failing
    fallen = rivals | {"champion": predictions(answers(0.17, seed=5))}
    found = verdict(fallen, good)
    assert found.champion_failing
    assert any("champion itself no longer passes" in text for text in found.paragraphs)
    candidate = evidence_of(ROWS, fallen | {"candidate": predictions(good)})
    assert not is_failing(candidate, CONFIG, "candidate")


# What the rule promises over many comparisons


def simulated(rng: np.random.Generator, rows: int, gain: float, differing: float = 0.15) -> Evidence:
    """A candidate that is truly better than the champion by `gain`, and weaker rivals."""
    should = rng.integers(0, 4, rows)
    champion = rng.random(rows) < 0.7
    flips = rng.random(rows)
    won, lost = (differing + gain) / 2 / 0.3, (differing - gain) / 2 / 0.7
    right = np.where(champion, flips >= lost, flips < won)
    models = {"base": rng.random(rows) < 0.3, "champion": champion, "candidate": right}
    models["lookup table"] = rng.random(rows) < 0.4
    other = (should + rng.integers(1, 4, rows)) % 4
    nothing = np.zeros(rows, bool)
    given = {name: ModelAnswers(np.where(own, should, other), ~nothing, nothing) for name, own in models.items()}
    return Evidence(tuple(DECISIONS), should, np.arange(rows), {GROUP: rng.integers(0, 8, rows).astype(str)}, given)


def test_gate_promotes_few_adapters_of_equal_quality() -> None:
    rng = np.random.default_rng(0)
    outcomes = [decide(simulated(rng, 500, gain=0.0), CONFIG).outcome for _ in range(300)]
    assert outcomes.count(BECOMES_CHAMPION) / len(outcomes) <= 0.07


def test_gate_promotes_most_adapters_that_are_much_better() -> None:
    rng = np.random.default_rng(1)
    outcomes = [decide(simulated(rng, 1_000, gain=0.06), CONFIG).outcome for _ in range(100)]
    assert outcomes.count(BECOMES_CHAMPION) / len(outcomes) >= 0.8
