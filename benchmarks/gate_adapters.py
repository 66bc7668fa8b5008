"""The gate on real adapters: `python -m benchmarks.gate_adapters`.

Trains adapters of the tiny base that differ in nothing but their seed and lets the gate judge each as a challenger of
each other: every promotion is a false one. Then judges adapters with planted defects. Adapters and answers are kept in
`runs/gate_adapters`, so that a run that was stopped continues there.
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

from rich.console import Console

from benchmarks.adapters import LINES, POLICY, SETTINGS, Bench, Trained, base_answers, open_bench, trained
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
BETTER = {"max_steps": 64}  # of the adapter that is truly better
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs of adapters, one judged as a challenger of the other: how many became champion, were significantly
    more often right, or would be champion as *more right than every rival*; all outcomes, the checks that were
    violated, and the share of rows on which the decisions of a pair differ (mean, least, most)."""

    pairs: int
    promoted: int
    significant: int
    old_rule: int
    outcomes: dict[str, int]
    violated: dict[str, int]
    differing: tuple[float, float, float]


def judge_pairs(bench: Bench, base: list[Prediction], pairs: Sequence[tuple[list[Prediction], ...]]) -> Pairs:
    """Judge each first as a challenger of the second."""
    evidence = [
        bench.evidence({"base": base, "champion": champion, "candidate": candidate}) for candidate, champion in pairs
    ]
    verdicts = [decide(found, bench.config) for found in evidence]
    differing = [_differing(found) for found in evidence]
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    return Pairs(
        pairs=len(pairs),
        promoted=outcomes[BECOMES_CHAMPION],
        significant=sum(_is_better(verdict) for verdict in verdicts),
        old_rule=sum(map(old_rule, evidence)),
        outcomes=dict(outcomes),
        violated=dict(Counter(check.name for v in verdicts for check in v.checks if check.state == VIOLATED)),
        differing=(fmean(differing), min(differing), max(differing)),
    )


def _differing(evidence: Evidence) -> float:
    candidate, champion = (evidence.models[name].decision for name in ("candidate", "champion"))
    return float((candidate != champion).mean())


def _is_better(verdict: Verdict) -> bool:
    return any(check.name == f"better than {CHAMPION}" and check.state == HOLDS for check in verdict.checks)


def measure(bench: Bench, adapters: int) -> dict[str, Any]:
    """Train, judge all pairs and a truly better adapter, and plant the defects; the results as they are written."""
    base = base_answers(bench)
    equal = [_trained(bench, seed=seed) for seed in range(1, adapters + 1)]
    better = _trained(bench, **BETTER)
    answers = [found.answers for found in equal]
    shares = [_accuracy(found) for found in answers]
    rivals = Rivals(better.adapter, better.answers, answers[0], base)
    return {
        "about": _about(bench, [*equal, better]),
        "accuracy": {
            "base": _accuracy(base),
            "lookup table": _accuracy(bench.baselines["lookup table"]),
            "equal": [fmean(shares), min(shares), max(shares), stdev(shares)],
            "better": _accuracy(better.answers),
        },
        "equal": asdict(judge_pairs(bench, base, list(permutations(answers, 2)))),
        "better": asdict(judge_pairs(bench, base, [(better.answers, champion) for champion in answers])),
        "planted": [asdict(found) for found in plant_all(bench, rivals, Path(bench.config.output_dir) / "planted")],
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
    about, equal, better, accuracy = (results[name] for name in ("about", "equal", "better", "accuracy"))
    rows, seconds, mean = about["rows"], about["cpu_seconds"], accuracy["equal"]
    differ, least, most = equal["differing"]
    outcomes = ", ".join(f"{outcome} {count}" for outcome, count in sorted(equal["outcomes"].items()))
    return [
        f"**Real adapters.** {about['adapters']} adapters of the tiny base, alike in all but their `seed`: "
        f"{about['settings']['max_steps']} steps on {rows['trained']} sample rows of the {rows['policy']} policy, "
        f"{rows['held_out']} held-out rows. They are right on {mean[0]:.1%} of them in the mean ({mean[1]:.1%} to "
        f"{mean[2]:.1%}; base {accuracy['base']:.1%}, lookup table {accuracy['lookup table']:.1%}), and two of them "
        f"decide {differ:.1%} of the rows differently ({least:.1%} to {most:.1%}). Each was judged as a challenger of "
        f"each other, {equal['pairs']} pairs:",
        "",
        "| | pairs | became champion | significantly more right | *more right than every rival* |",
        "|---|--:|--:|--:|--:|",
        _pairs_row("equal adapters: every promotion is false", equal),
        _pairs_row(
            f"{about['better_settings']['max_steps']} steps, {accuracy['better']:.1%} right, against each", better
        ),
        "",
        f"Outcomes of the equal pairs: {outcomes}. {seconds['training']:,} CPU seconds of training and "
        f"{seconds['evaluation']:,} of evaluation, {about['date']}, "
        f"{', '.join(f'{name} {number}' for name, number in about['versions'].items())}.",
        "",
    ]


def _pairs_row(name: str, pairs: dict[str, Any]) -> str:
    counts = [f"{pairs[key]} ({pairs[key] / pairs['pairs']:.1%})" for key in ("promoted", "significant", "old_rule")]
    return f"| {name} | {pairs['pairs']} | {' | '.join(counts)} |"


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
    if not parser.parse_args().render:
        set_environment()
        logging.basicConfig(level=logging.WARNING)
        logger.setLevel(logging.INFO)
        results = measure(open_bench(RUNS), ADAPTERS)
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_section(PAGE, SECTION, section(load()))
    Console().print(section(load()), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
