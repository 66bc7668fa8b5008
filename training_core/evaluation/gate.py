"""Whether an adapter becomes champion: the rule alone, apart from registry and flow."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Final, NamedTuple

import numpy as np

from training_core.config import RunConfig
from training_core.dataset.evaluation_findings import same_decision
from training_core.dataset.power import detectable_gain, rows_needed
from training_core.evaluation.evidence import GROUP, POLICY, Evidence, ModelAnswers
from training_core.evaluation.paired_tests import LEVEL, PairedTest, compare_paired, holm, lower_mean_p

BECOMES_CHAMPION: Final = "becomes champion"
STAYS_CANDIDATE: Final = "stays candidate"
UNDECIDED: Final = "undecided"

# What a check found: it holds, the opposite was shown, or the rows show neither.
HOLDS: Final = "holds"
VIOLATED: Final = "violated"
OPEN: Final = "not shown"

CANDIDATE, CHAMPION, LOOKUP_TABLE = "candidate", "champion", "lookup table"
SMALLEST_SLICE = 25
TEXT_MARGIN = 0.02  # texts worse by less are as good: on many rows the smallest difference is significant
UNRELATED = 0.2  # no text of an answer agrees better with the expected one: gibberish, or an answer to another case
MOST_JUDGED = 20  # versions that one set of held-out rows can judge before it should be replaced

# The settings that a verdict depends on besides the evidence, for keys of caches.
GATE_SETTINGS: Final = (
    *("favourable_decisions", "group_by", "slice_fields", "min_eval_rows", "min_usable"),
    *("min_improvement", "max_favourable_rise", "max_refused_rise"),
)


@dataclass(frozen=True)
class Check:
    """One condition of the rule: its name, its ``state`` (``HOLDS``, ``VIOLATED`` or ``OPEN``), what was found in one
    sentence, the p-value where a test decided, and the comparison behind it."""

    name: str
    state: str
    sentence: str
    p: float | None = None
    test: PairedTest | None = None


@dataclass(frozen=True)
class Verdict:
    """``outcome`` is ``BECOMES_CHAMPION``, ``STAYS_CANDIDATE`` (the candidate was shown to be worse, or a check is
    violated) or ``UNDECIDED`` (the rows do not show enough). Whether a person has to approve is not decided here.

    ``reason`` says why in one line, ``paragraphs`` at length. ``champion_failing``: the present champion no longer
    passes against base and lookup table. ``fresh_rows_wanted``: these held-out rows have judged many versions.
    """

    outcome: str
    reason: str
    paragraphs: tuple[str, ...] = ()
    p_values: dict[str, float] = field(default_factory=dict)
    champion_failing: bool = False
    fresh_rows_wanted: bool = False
    checks: tuple[Check, ...] = ()

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}"


def decide(evidence: Evidence, config: RunConfig, versions_judged: int = 0, versions_promoted: int = 0) -> Verdict:
    """The verdict on the candidate.

    ``versions_judged`` and ``versions_promoted`` count what these held-out rows have decided before. All tests are
    paired, one-sided and at 5%. Every check has to hold, so the chance of a false promotion is that of the weakest
    check at most, and no correction for their number is needed. The same evidence always gives the same verdict.
    """
    checks = (
        check_rows(evidence, config),
        *(check_better(evidence, config, rival) for rival in evidence.models if rival != CANDIDATE),
        check_approvals(evidence, config),
        check_refusals(evidence, config),
        check_usable(evidence, config),
        check_texts(evidence),
        check_audit(evidence),
        check_slices(evidence, config),
        check_effect(evidence),
    )
    failing = CHAMPION in evidence.models and is_failing(evidence, config, CHAMPION)
    wanted = versions_judged >= MOST_JUDGED
    reused = [_reuse(versions_judged, versions_promoted)] if versions_judged else []
    outcome = _outcome(checks)
    return Verdict(
        outcome=outcome,
        reason=_reason(outcome, checks),
        paragraphs=(*(check.sentence for check in checks), *reused, *([_failing(evidence)] if failing else [])),
        p_values={check.name: check.p for check in checks if check.p is not None},
        champion_failing=failing,
        fresh_rows_wanted=wanted,
        checks=checks,
    )


def is_failing(evidence: Evidence, config: RunConfig, model: str) -> bool:
    """Whether a model is not better than base and lookup table, on enough rows to say so."""
    rivals = [name for name in ("base", LOOKUP_TABLE) if name in evidence.models]
    tests = [compare_paired(evidence.right(model), evidence.right(rival), evidence.ties) for rival in rivals]
    return evidence.rows >= config.min_eval_rows and any(test.p >= LEVEL for test in tests)


# The conditions of the rule, one function each


def check_rows(evidence: Evidence, config: RunConfig) -> Check:
    """At least ``min_eval_rows`` rows."""
    enough = evidence.rows >= config.min_eval_rows
    least = f"at least {config.min_eval_rows} are needed (min_eval_rows)"
    sentence = f"{evidence.rows:,} held-out rows were answered; {least}."
    return Check("enough rows", HOLDS if enough else OPEN, sentence)


def check_better(evidence: Evidence, config: RunConfig, rival: str) -> Check:
    """Right on significantly more rows than a rival, by more than ``min_improvement``."""
    test = compare_paired(evidence.right(CANDIDATE), evidence.right(rival), evidence.ties)
    better = test.p < LEVEL and test.low > config.min_improvement
    refuted = 1 - test.p < LEVEL or test.high < config.min_improvement
    state = HOLDS if better else VIOLATED if refuted else OPEN
    wanted = f" and a gain above {_points(config.min_improvement)}" if config.min_improvement else ""
    sentence = (
        f"Against the {rival}: right on {test.wins} rows where it is wrong, wrong on {test.losses} where it is right, "
        f"of {test.rows:,} rows. Gain {_interval(test)}, p = {_p(test.p)} ({_method(test)}); p < {LEVEL}{wanted} is "
        f"needed. {_what_decides(test, config) if state == OPEN else ''}"
    )
    return Check(f"better than {rival}", state, sentence.rstrip(), test.p, test)


def check_approvals(evidence: Evidence, config: RunConfig) -> Check:
    """No more false approvals than the reference, up to ``max_favourable_rise``."""
    wrong = {name: _is_favourable(evidence, config, name) & ~_should_be(evidence, config) for name in _pair(evidence)}
    return _check_rise("false approvals", wrong, evidence, config.max_favourable_rise, "max_favourable_rise")


def check_refusals(evidence: Evidence, config: RunConfig) -> Check:
    """No more false refusals than the reference, up to ``max_refused_rise``."""
    wrong = {name: ~_is_favourable(evidence, config, name) & _should_be(evidence, config) for name in _pair(evidence)}
    return _check_rise("false refusals", wrong, evidence, config.max_refused_rise, "max_refused_rise")


def check_usable(evidence: Evidence, config: RunConfig) -> Check:
    """At least ``min_usable`` of the answers are usable."""
    usable = evidence.models[CANDIDATE].usable
    state = HOLDS if usable.mean() >= config.min_usable else VIOLATED
    sentence = (
        f"{int(usable.sum())} of {evidence.rows:,} answers are usable ({usable.mean():.1%}); at least "
        f"{config.min_usable:.0%} are needed (min_usable)."
    )
    return Check("usable answers", state, sentence)


def check_texts(evidence: Evidence) -> Check:
    """In no field texts that are significantly worse than the reference's, by more than 2 points, and not
    significantly more answers in which no text fits (Holm over fields and that).

    Compared on the rows where both decisions are right: elsewhere the texts belong to different decisions. Better
    texts in most answers do not make up for gibberish in some, so those are counted.
    """
    tests = text_tests(evidence)
    if not tests:
        return Check("texts", HOLDS, "There are no texts to compare with those of the " + reference_of(evidence) + ".")
    unrelated = unrelated_test(evidence)
    adjusted = holm([*(test.p for test in tests.values()), unrelated.p])
    shares = ", ".join(f"{name} {test.own:.0%} ({test.other:.0%})" for name, test in tests.items())
    named = zip(
        [*tests, f"{unrelated.wins - unrelated.losses} more answers in which no text fits"], adjusted, strict=True
    )
    worse = ", ".join(f"{name} (p = {_p(p)})" for name, p in named if p < LEVEL)
    sentence = (
        f"Where its decision and that of the {reference_of(evidence)} (in brackets) are right, texts agree with the "
        f"expected ones to: {shares} (chrF or equality). Worse by more than {_points(TEXT_MARGIN)}: {worse or 'none'}."
    )
    return Check("texts", VIOLATED if worse else HOLDS, sentence, min(adjusted))


def check_audit(evidence: Evidence) -> Check:
    """Not significantly more answers with problems, by ``answer_audit``, than the reference."""
    candidate, reference = (evidence.models[name].has_problems for name in _pair(evidence))
    if not candidate.any():
        return Check("answer audit", HOLDS, "No answer has a problem that answer_audit looks for.")
    test = compare_paired(candidate, reference, evidence.ties)
    sentence = (
        f"answer_audit found problems in {int(candidate.sum())} answers, and in {int(reference.sum())} of the "
        f"{reference_of(evidence)}; p = {_p(test.p)}."
    )
    return Check("answer audit", VIOLATED if test.p < LEVEL else HOLDS, sentence, test.p, test)


def check_slices(evidence: Evidence, config: RunConfig) -> Check:
    """In no slice of at least 25 rows significantly worse than the reference (Holm over all slices)."""
    slices = list(slice_tests(evidence, config))
    if not slices:
        return Check("slices", HOLDS, f"No slice has {SMALLEST_SLICE} rows, so none was tested.")
    adjusted = holm([1 - test.p for _, test in slices])
    fallen = [
        f"{name}: {test.wins} won, {test.losses} lost, of {test.rows} rows (p = {_p(p)})"
        for (name, test), p in sorted(zip(slices, adjusted, strict=True), key=lambda item: item[1])
        if p < LEVEL
    ]
    worse = f"significantly worse than the {reference_of(evidence)} in {len(fallen)}: {'; '.join(fallen)}."
    sentence = f"{len(slices)} slices of at least {SMALLEST_SLICE} rows were tested; "
    sentence += worse if fallen else f"in none is it significantly worse than the {reference_of(evidence)}."
    return Check("slices", VIOLATED if fallen else HOLDS, sentence, min(adjusted))


def check_effect(evidence: Evidence) -> Check:
    """Answers that differ from the base's: an adapter without effect is no adapter."""
    base = evidence.models.get("base")
    candidate = evidence.models[CANDIDATE]
    if base is None or not candidate.answers:
        return Check("effect", HOLDS, "The base's answers are not among the evidence.")
    differing = sum(own != other for own, other in zip(candidate.answers, base.answers, strict=True))
    sentence = f"{differing:,} of {evidence.rows:,} answers differ from the base's."
    return Check("effect", HOLDS if differing else VIOLATED, sentence)


class TextTest(NamedTuple):
    """Mean scores of one field's texts, the candidate's and the reference's, and the p-value of "no worse by more
    than ``TEXT_MARGIN``"."""

    own: float
    other: float
    p: float


def text_tests(evidence: Evidence) -> dict[str, TextTest]:
    """Candidate against reference for each text field that both have."""
    candidate, reference = (evidence.models[name].text_scores for name in _pair(evidence))
    both = evidence.right(CANDIDATE) & evidence.right(reference_of(evidence))
    found = {}
    for name in candidate.keys() & reference.keys() if both.sum() >= SMALLEST_SLICE else ():
        rows = both & ~np.isnan(candidate[name]) & ~np.isnan(reference[name])
        if rows.any():
            own, other = candidate[name][rows], reference[name][rows]
            ties = np.unique(evidence.ties[rows], return_inverse=True)[1]
            found[name] = TextTest(float(own.mean()), float(other.mean()), lower_mean_p(own + TEXT_MARGIN, other, ties))
    return dict(sorted(found.items()))


def unrelated_test(evidence: Evidence) -> PairedTest:
    """Candidate against reference: answers in which every text agrees with the expected one by less than 20%."""
    rows = evidence.right(CANDIDATE) & evidence.right(reference_of(evidence))
    own, other = (_unrelated(evidence.models[name])[rows] for name in _pair(evidence))
    return compare_paired(own, other, np.unique(evidence.ties[rows], return_inverse=True)[1])


def _unrelated(answers: ModelAnswers) -> np.ndarray:
    scores = np.stack(list(answers.text_scores.values()))
    has_texts = ~np.isnan(scores).all(axis=0)
    return has_texts & (np.nan_to_num(scores, nan=0.0).max(axis=0) < UNRELATED)


def slice_tests(evidence: Evidence, config: RunConfig) -> Iterator[tuple[str, PairedTest]]:
    """Candidate against reference in each slice of at least 25 rows: by group, policy and ``slice_fields``."""
    candidate, reference = (evidence.right(name) for name in _pair(evidence))
    names = {GROUP: config.group_by, POLICY: "policy", **{name: name for name in config.slice_fields}}
    for place, name in names.items():
        values = evidence.fields.get(place)
        for value, count in zip(*np.unique(values, return_counts=True), strict=True) if values is not None else ():
            if count >= SMALLEST_SLICE:
                own = values == value
                ties = np.unique(evidence.ties[own], return_inverse=True)[1]
                yield f"{name} {value or '(none)'}", compare_paired(candidate[own], reference[own], ties)


# What the conditions share


def _pair(evidence: Evidence) -> tuple[str, str]:
    """The candidate and the model that the guards compare it with."""
    return CANDIDATE, reference_of(evidence)


def reference_of(evidence: Evidence) -> str:
    """The model that guards compare the candidate with: the champion, or the lookup table where there is none."""
    return CHAMPION if CHAMPION in evidence.models else LOOKUP_TABLE


def _check_rise(name: str, wrong: dict[str, np.ndarray], evidence: Evidence, limit: float, setting: str) -> Check:
    reference = reference_of(evidence)
    test = compare_paired(wrong[CANDIDATE], wrong[reference], evidence.ties)
    state = HOLDS if test.high < limit else VIOLATED if test.p < LEVEL else OPEN
    sentence = (
        f"{name.capitalize()}: {int(wrong[CANDIDATE].sum())} rows, the {reference} {int(wrong[reference].sum())}. Rise "
        f"{_interval(test)}; the bound above must be below {_points(limit)} ({setting})."
        f"{_what_bounds(test, limit) if state == OPEN else ''}"
    )
    return Check(name, state, sentence, test.p, test)


def _favourable(evidence: Evidence, config: RunConfig) -> np.ndarray:
    """Which decisions, by number, are in the customer's favour."""
    names = {same_decision(decision) for decision in config.favourable_decisions}
    return np.array([same_decision(decision) in names for decision in evidence.decisions], bool)


def _should_be(evidence: Evidence, config: RunConfig) -> np.ndarray:
    return _favourable(evidence, config)[evidence.expected]


def _is_favourable(evidence: Evidence, config: RunConfig, model: str) -> np.ndarray:
    found = evidence.models[model]
    return found.usable & _favourable(evidence, config)[found.decision]


def _outcome(checks: tuple[Check, ...]) -> str:
    states = {check.state for check in checks}
    if VIOLATED in states:
        return STAYS_CANDIDATE
    return UNDECIDED if OPEN in states else BECOMES_CHAMPION


# How it is said


def _reason(outcome: str, checks: tuple[Check, ...]) -> str:
    decisive = {STAYS_CANDIDATE: VIOLATED, UNDECIDED: OPEN}.get(outcome)
    if decisive is None:
        tests = [check.test for check in checks if check.name.startswith("better") and check.test]
        smallest = min(tests, key=lambda test: test.gain)
        rival = next(check.name for check in checks if check.test is smallest).removeprefix("better than ")
        return f"every check holds; smallest gain {_interval(smallest)}, over the {rival}, p = {_p(smallest.p)}"
    found = [check for check in checks if check.state == decisive]
    return f"{decisive}: {', '.join(check.name for check in found)}. {found[0].sentence}"


def _what_decides(test: PairedTest, config: RunConfig) -> str:
    """How many rows would show the gain that was seen, if it is a true one."""
    effect = test.gain - config.min_improvement
    differing = (test.wins + test.losses) / max(test.rows, 1)
    if effect <= 0:
        seen = detectable_gain(test.rows, differing) if differing else None
        enough = f"; so many rows show a true gain of {_points(seen)} in 80% of comparisons" if seen else ""
        return f"More rows would not help a gain that is not there{enough}."
    rows = rows_needed(effect, differing)
    return f"If the gain is real, about {max(rows, test.rows + 1):,} held-out rows show it in 80% of comparisons."


def _what_bounds(test: PairedTest, limit: float) -> str:
    """How many rows would bring the bound below the limit if the rise stays what it is: its width falls as 1/√rows."""
    if test.gain >= limit:
        return ""
    rows = ceil(test.rows * ((test.high - test.gain) / (limit - test.gain)) ** 2)
    return f" If the rise is real, about {max(rows, test.rows + 1):,} held-out rows show that it is below."


def _reuse(judged: int, promoted: int) -> str:
    text = f"These held-out rows have judged {judged} versions and chosen {promoted}."
    if judged < MOST_JUDGED:
        return text
    return f"{text} Every further verdict on them is less certain than its p-value; give fresh rows (eval_path)."


def _failing(evidence: Evidence) -> str:
    right = {
        name: int(evidence.right(name).sum()) for name in (CHAMPION, "base", LOOKUP_TABLE) if name in evidence.models
    }
    counts = ", ".join(f"{name} {count}" for name, count in right.items())
    return (
        f"The champion itself no longer passes: right decisions of {evidence.rows:,} rows: {counts}. Look at the rows "
        "that changed, roll back, or train on present rows."
    )


def _method(test: PairedTest) -> str:
    if test.units == test.rows:
        return "McNemar's mid-p test"
    return f"sign-flip test over {test.units:,} ties of rows"


def _interval(test: PairedTest) -> str:
    return f"{100 * test.gain:+.1f} points (95% bounds {100 * test.low:+.1f} and {100 * test.high:+.1f})"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"
