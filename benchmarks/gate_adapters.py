"""The gate on real adapters: `python -m benchmarks.gate_adapters`.

Trains adapters of the tiny base that differ in nothing but their seed and lets the gate judge each as a challenger of
each other. Further rows tell which of two is better in truth. Then each pair's answers are exchanged at random, row by
row, which makes two adapters that are equal in truth, so that every promotion is false. At last defects are planted.
Adapters and answers are kept in `runs/gate_adapters`: a run that was stopped continues there.
"""

import argparse
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.adapters import (
    LINES,
    POLICY,
    SETTINGS,
    Bench,
    Trained,
    base_answers,
    decides_right,
    fresh_rows,
    open_bench,
    trained,
)
from benchmarks.gate import old_rule
from benchmarks.planted import Caught, Rivals, plant_all
from flows.cli import set_environment
from flows.doc_sections import DOCS, ROOT, write_section
from training_core.evaluation.evidence import Evidence
from training_core.evaluation.gate import BECOMES_CHAMPION, CHAMPION, HOLDS, VIOLATED, Verdict, decide
from training_core.evaluation.scores import Prediction

RESULTS = ROOT / "benchmarks" / "results" / "gate_adapters.json"
RUNS = ROOT / "runs" / "gate_adapters"
PAGE, SECTION = DOCS / "evaluation.md", "adapters"

ADAPTERS = 24
DRAWS = 4  # exchanges of each pair's answers
BETTER = {"max_steps": 64}  # of the adapter that is truly better
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")

logger = logging.getLogger(__name__)


Answers = list[Prediction]
Pair = tuple[Answers, Answers]  # a challenger's and a champion's


@dataclass(frozen=True)
class Judged:
    """A pair as the gate sees it, and its verdict."""

    evidence: Evidence
    verdict: Verdict

    @property
    def promoted(self) -> bool:
        return self.verdict.outcome == BECOMES_CHAMPION

    @property
    def significant(self) -> bool:
        """Whether the challenger is significantly more often right than the champion."""
        return any(c.name == f"better than {CHAMPION}" and c.state == HOLDS for c in self.verdict.checks)


@dataclass(frozen=True)
class Pairs:
    """Counts over ordered pairs of adapters, one judged as a challenger of the other: how many became champion, were
    significantly more often right, or would be champion as *more right than every rival*; all outcomes, the checks that
    were violated, and the share of rows on which the decisions of a pair differ (mean, least, most)."""

    pairs: int
    promoted: int
    significant: int
    old_rule: int
    outcomes: dict[str, int]
    violated: dict[str, int]
    differing: tuple[float, float, float]


@dataclass(frozen=True)
class Truth:
    """What further rows say about the promotions of one adapter over another: the share of right decisions of the
    adapters (least, most), the mean gain of promoted ones, how many of them have no gain, and so for *more right*."""

    rows: int
    accuracy: tuple[float, float]
    gain: float
    false: int
    old_rule_false: int


def judge(bench: Bench, base: Answers, pairs: Sequence[Pair]) -> list[Judged]:
    """Judge each first as a challenger of the second."""
    found = [
        bench.evidence({"base": base, "champion": champion, "candidate": candidate}) for candidate, champion in pairs
    ]
    return [Judged(evidence, decide(evidence, bench.config)) for evidence in found]


def count(judged: Sequence[Judged]) -> Pairs:
    """The counts over judged pairs."""
    differing = [_differing(found.evidence) for found in judged]
    checks = [check for found in judged for check in found.verdict.checks]
    return Pairs(
        pairs=len(judged),
        promoted=sum(found.promoted for found in judged),
        significant=sum(found.significant for found in judged),
        old_rule=sum(old_rule(found.evidence) for found in judged),
        outcomes=dict(Counter(found.verdict.outcome for found in judged)),
        violated=dict(Counter(check.name for check in checks if check.state == VIOLATED)),
        differing=(fmean(differing), min(differing), max(differing)),
    )


def _differing(evidence: Evidence) -> float:
    candidate, champion = (evidence.models[name].decision for name in ("candidate", "champion"))
    return float((candidate != champion).mean())


def exchanged(pairs: Sequence[Pair], draws: int = DRAWS) -> list[Pair]:
    """The same pairs, several times, each row's two answers exchanged or not by the toss of a coin."""
    rng = np.random.default_rng(0)
    found = []
    for one, other in [*pairs] * draws:
        coins = rng.random(len(one)) < 0.5
        rows = [(a, b) if coin else (b, a) for a, b, coin in zip(one, other, coins, strict=True)]
        found.append(([first for first, _ in rows], [second for _, second in rows]))
    return found


def truth(judged: Sequence[Judged], right: Sequence[Sequence[bool]]) -> Truth:
    """Whether promotions were true; ``judged`` are all ordered pairs of the adapters that ``right`` is about."""
    shares = [fmean(found) for found in right]
    gains = [own - other for own, other in permutations(shares, 2)]
    promoted = [gain for gain, found in zip(gains, judged, strict=True) if found.promoted]
    old = [gain for gain, found in zip(gains, judged, strict=True) if old_rule(found.evidence)]
    false, old_false = (sum(gain <= 0 for gain in some) for some in (promoted, old))
    mean = fmean(promoted) if promoted else 0.0
    return Truth(len(right[0]), (min(shares), max(shares)), mean, false, old_false)


def measure(bench: Bench, adapters: int) -> dict[str, Any]:
    """Train, judge all pairs and a truly better adapter, and plant the defects; the results as they are written."""
    base, fresh = base_answers(bench), fresh_rows(bench)
    equal = [_trained(bench, seed=seed) for seed in range(1, adapters + 1)]
    better = _trained(bench, seed=1, **BETTER)
    answers = [found.answers for found in equal]
    pairs: list[Pair] = list(permutations(answers, 2))
    judged = judge(bench, base, pairs)
    rivals = Rivals(better.adapter, better.answers, answers[0], base)
    return {
        "about": _about(bench, [*equal, better]),
        "accuracy": _accuracies(bench, base, answers, better.answers),
        "seeds": asdict(count(judged)),
        "truth": asdict(truth(judged, [decides_right(bench, found.adapter, fresh) for found in equal])),
        "exchanged": asdict(count(judge(bench, base, exchanged(pairs)))),
        "better": asdict(count(judge(bench, base, [(better.answers, champion) for champion in answers]))),
        "planted": [asdict(found) for found in plant_all(bench, rivals, Path(bench.config.output_dir) / "planted")],
    }


def _accuracies(bench: Bench, base: Answers, answers: Sequence[Answers], better: Answers) -> dict[str, Any]:
    shares = [_accuracy(found) for found in answers]
    return {
        "base": _accuracy(base),
        "lookup table": _accuracy(bench.baselines["lookup table"]),
        "seeds": [fmean(shares), min(shares), max(shares), stdev(shares)],
        "better": _accuracy(better),
    }


def _trained(bench: Bench, **settings: Any) -> Trained:
    found = trained(bench, **settings)
    logger.info("%s: %.1f%% right, %s", settings, 100 * _accuracy(found.answers), found.adapter)
    return found


def _accuracy(answers: Sequence[Prediction]) -> float:
    return fmean(found.right for found in answers)


def _about(bench: Bench, adapters: Sequence[Trained]) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in PACKAGES},
        "adapters": len(adapters) - 1,
        "settings": dict(SETTINGS),
        "better_settings": BETTER,
        "rows": {"policy": POLICY, "lines": LINES, "trained": len(bench.data.train), "held_out": len(bench.rows)},
        "cpu_seconds": {
            "training": round(sum(found.training_seconds for found in adapters)),
            "evaluation": round(sum(found.evaluation_seconds for found in adapters)),
        },
    }


# What is published


def section(results: dict[str, Any]) -> str:
    """The page's section: the pairs in sentences, the planted defects as a table."""
    return "\n".join([*_pairs_text(results), *_planted_text([Caught(**found) for found in results["planted"]])])


def _pairs_text(results: dict[str, Any]) -> list[str]:
    about, accuracy, better = (results[name] for name in ("about", "accuracy", "better"))
    rows, (mean, least, most, _) = about["rows"], accuracy["seeds"]
    return [
        f"**Real adapters.** {about['adapters']} adapters of the tiny base, alike in all but their `seed`: "
        f"{about['settings']['max_steps']} steps on {rows['trained']} sample rows of the {rows['policy']} policy, "
        f"{rows['held_out']} held-out rows. They are right on {mean:.1%} of them in the mean ({least:.1%} to "
        f"{most:.1%}; base {accuracy['base']:.1%}, lookup table {accuracy['lookup table']:.1%}). Each was judged as a "
        "challenger of each other:",
        "",
        "| challenger and champion | pairs | decide differently | became champion | significantly more right | *more "
        "right than every rival* |",
        "|---|--:|--:|--:|--:|--:|",
        _pairs_row("two seeds", results["seeds"]),
        _pairs_row("the same, equal in truth: each row's two answers exchanged at random", results["exchanged"]),
        _pairs_row(
            f"{about['better_settings']['max_steps']} steps, {accuracy['better']:.1%} right, and a seed", better
        ),
        "",
        *_truth_text(results["seeds"], Truth(**results["truth"])),
        f"Outcomes of two seeds: {_counts(results['seeds']['outcomes'])}; equal in truth: "
        f"{_counts(results['exchanged']['outcomes'])}.",
        "",
        _cost_text(about),
        "",
    ]


def _truth_text(seeds: dict[str, Any], truth: Truth) -> list[str]:
    pairs = seeds["pairs"]
    return [
        f"Adapters of two seeds are not equal after so few steps: on {truth.rows} further rows they are right on "
        f"{truth.accuracy[0]:.1%} to {truth.accuracy[1]:.1%}. There the {seeds['promoted']} that became champion are "
        f"better than the adapter they replaced by {100 * truth.gain:.1f} points in the mean, and {truth.false} "
        f"({truth.false / pairs:.1%} of all pairs) are not better: false promotions. By *more right than every rival* "
        f"{truth.old_rule_false} ({truth.old_rule_false / pairs:.1%}) would be false.",
        "",
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))


def _cost_text(about: dict[str, Any]) -> str:
    seconds, versions = about["cpu_seconds"], about["versions"]
    return (
        f"{seconds['training']:,} CPU seconds of training, {seconds['evaluation']:,} of evaluation, {about['date']}, "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}."
    )


def _pairs_row(name: str, pairs: dict[str, Any]) -> str:
    counts = [f"{pairs[key]} ({pairs[key] / pairs['pairs']:.1%})" for key in ("promoted", "significant", "old_rule")]
    return f"| {name} | {pairs['pairs']} | {pairs['differing'][0]:.1%} | {' | '.join(counts)} |"


def _planted_text(planted: Sequence[Caught]) -> list[str]:
    return [
        "**Planted defects**, each in the adapter with more steps, judged as a challenger of the first of the others "
        "unless the table says otherwise; without a defect it becomes champion. *Caught by* names the checks that do "
        "not hold, and the sentence is that of the first.",
        "",
        "| planted | where | right | outcome | caught by | the sentence that the user reads |",
        "|---|---|--:|---|---|---|",
        *(_planted_row(found) for found in planted),
        "",
    ]


def _planted_row(found: Caught) -> str:
    right = "" if found.accuracy is None else f"{found.accuracy:.1%}"
    sentence = found.sentence.replace("|", "\\|")
    return f"| {found.planted} | {found.place} | {right} | {found.outcome} | {', '.join(found.by)} | {sentence} |"


def load() -> dict[str, Any]:
    """The last results."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def main() -> None:
    """Measure; then write results and the page's section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_adapters", description=__doc__)
    parser.add_argument("--render", action="store_true", help="write the page's section from the last results")
    parser.add_argument("--adapters", type=int, default=ADAPTERS, help=f"so many, instead of {ADAPTERS}")
    arguments = parser.parse_args()
    if not arguments.render:
        set_environment()
        logging.basicConfig(level=logging.WARNING)
        logger.setLevel(logging.INFO)
        results = measure(open_bench(RUNS), arguments.adapters)
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_section(PAGE, SECTION, section(load()))
    Console().print(section(load()), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
