"""How often the gate promotes what it should and what it should not: `python -m benchmarks.gate` (`--quick`).

Comparisons are simulated: champion and candidate are right or wrong on rows of four decisions, and disagree on 15% of
them, as adapters of one recipe do. Every verdict comes from `gate.decide` itself, with all of its checks. The same
comparisons are also decided by the rule `own > rival`: more right decisions than every other model.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm

from flows.doc_sections import DOCS, ROOT, write_section
from training_core.config import read_settings
from training_core.evaluation.evidence import GROUP, POLICY, Evidence, ModelAnswers
from training_core.evaluation.gate import BECOMES_CHAMPION, decide

RESULTS = ROOT / "benchmarks" / "results" / "gate.json"
PICTURE = DOCS / "promotion_power.png"
PAGE, SECTION = DOCS / "evaluation.md", "gate"

CONFIG = read_settings({})
DECISIONS = ("Eligible", "Escalate", "In Progress", "Not Eligible")
FAVOURABLE = 0
GROUPS, POLICIES = 20, 10
QUALITY, DIFFERING = 0.70, 0.15  # share of right decisions of the champion; of rows on which the candidate differs
BASE, LOOKUP_TABLE, MAJORITY = 0.35, 0.44, 0.28
ROWS, GAINS = (125, 250, 500, 1000, 2000), (0.0, 0.01, 0.03, 0.05, 0.08)
HARM_GAIN, HARM_RISE = 0.05, 0.03
TIE = 4  # rows about one customer
WEEKS, WEEKLY_ROWS, WEEKLY_SPREAD = 52, 500, 0.02


@dataclass(frozen=True)
class Cell:
    """Many comparisons of one kind: shares of them in which the gate, and `own > rival`, promote; and all outcomes."""

    kind: str
    rows: int
    gain: float
    gates: int
    promoted: float
    old_rule: float
    outcomes: dict[str, int]


@dataclass(frozen=True)
class Weeks:
    """Many histories of weekly challengers: means per history of promotions and of those to a truly worse adapter, and
    the mean true quality of the last champion."""

    rule: str
    rows: str
    histories: int
    promotions: float
    worse: float
    last_quality: float


# Comparisons


def comparison(rng: np.random.Generator, rows: int, gain: float, *, rise: float = 0.0, tie: int = 1) -> Evidence:
    """A candidate that is truly better by `gain` and grants `rise` more against the policy; `tie` rows at a time are
    about one customer, and are answered alike."""
    units = rows // tie
    champion = rng.random(units) < QUALITY
    flips = rng.random(units)
    won, lost = (DIFFERING + gain) / 2 / (1 - QUALITY), (DIFFERING - gain) / 2 / QUALITY
    candidate = np.where(champion, flips >= lost, flips < won)
    expected = np.repeat(rng.integers(0, len(DECISIONS), units), tie)
    wrong = np.repeat((expected[::tie] + rng.integers(1, len(DECISIONS), units)) % len(DECISIONS), tie)
    right = {"champion": np.repeat(champion, tie), "candidate": np.repeat(candidate, tie)}
    evidence = evidence_of(rng, expected, wrong, right, np.repeat(np.arange(units), tie))
    return _granting(rng, evidence, gain, rise) if rise else evidence


def evidence_of(
    rng: np.random.Generator, expected: np.ndarray, wrong: np.ndarray, right: dict[str, np.ndarray], ties: np.ndarray
) -> Evidence:
    """Evidence in which each model gives the expected decision where it is right, and the row's wrong one elsewhere."""
    rows = len(expected)
    others = {"base": BASE, "majority": MAJORITY, "lookup table": LOOKUP_TABLE}
    right = right | {name: rng.random(rows) < share for name, share in others.items()}
    usable, no_problems = np.ones(rows, bool), np.zeros(rows, bool)
    fields = {
        GROUP: rng.integers(0, GROUPS, rows).astype(str),
        POLICY: rng.integers(0, POLICIES, rows).astype(str),
    }
    models = {name: ModelAnswers(np.where(own, expected, wrong), usable, no_problems) for name, own in right.items()}
    return Evidence(DECISIONS, expected, ties, fields, models)


def _granting(rng: np.random.Generator, evidence: Evidence, gain: float, rise: float) -> Evidence:
    """The same, where the candidate grants more of what it gets wrong: its true false approvals rise by `rise`."""
    candidate = evidence.models["candidate"]
    refusable, others = 1 - 1 / len(DECISIONS), len(DECISIONS) - 1
    without = -refusable * gain / others  # the rise when wrong decisions are spread evenly
    share = (rise - without) / (refusable * (1 - QUALITY - gain) * (1 - 1 / others))
    wrong = (candidate.decision != evidence.expected) & (evidence.expected != FAVOURABLE)
    granted = wrong & (rng.random(evidence.rows) < share)
    decision = np.where(granted, FAVOURABLE, candidate.decision)
    return replace(evidence, models=dict(evidence.models) | {"candidate": replace(candidate, decision=decision)})


def old_rule(evidence: Evidence) -> bool:
    """More right decisions than every other model."""
    right = {name: int(evidence.right(name).sum()) for name in evidence.models}
    return all(right["candidate"] > count for name, count in right.items() if name != "candidate")


def measure(kind: str, rows: int, gates: int, **how: float) -> Cell:
    """Decide so many comparisons of one kind."""
    rng = np.random.default_rng([rows, *kind.encode(), round(1000 * how["gain"])])
    outcomes: Counter[str] = Counter()
    old = 0
    for _ in range(gates):
        evidence = comparison(rng, rows, **how)  # type: ignore[arg-type]
        outcomes[decide(evidence, CONFIG).outcome] += 1
        old += old_rule(evidence)
    return Cell(kind, rows, how["gain"], gates, outcomes[BECOMES_CHAMPION] / gates, old / gates, dict(outcomes))


def cells(gates: int) -> Iterator[Cell]:
    """Power per number of rows and gain, tied rows, and an adapter that does harm."""
    for rows in ROWS:
        for gain in GAINS:
            yield measure("power", rows, gates, gain=gain)
    for gain in (0.0, HARM_GAIN):
        yield measure("tied", 1000, gates, gain=gain, tie=TIE)
    for rows in ROWS:
        yield measure("harm", rows, gates, gain=HARM_GAIN, rise=HARM_RISE)


# Weekly challengers


def correlation() -> float:
    """How strongly rows decide what a model gets right, so that two models disagree on `DIFFERING` of the rows."""
    cut = norm.ppf(QUALITY)

    def disagreement(rho: float) -> float:
        both = multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([cut, cut])
        return float(2 * (QUALITY - both) - DIFFERING)

    return float(brentq(disagreement, 0.01, 0.999))


def weekly(rule: str, rows: str, histories: int) -> Weeks:
    """Champions over `WEEKS` challengers whose true quality varies, judged on the same or on fresh rows."""
    rng = np.random.default_rng(len(rule) + len(rows))
    rho = correlation()
    found = np.array([_history(rng, rho, rule, rows) for _ in range(histories)])
    return Weeks(rule, rows, histories, *(float(value) for value in found.mean(axis=0)))


def _history(rng: np.random.Generator, rho: float, rule: str, rows: str) -> tuple[int, int, float]:
    """Promotions, promotions to a truly worse adapter, and the true quality of the last champion."""
    quality, promotions, worse = QUALITY, 0, 0
    hardness, own = rng.normal(size=WEEKLY_ROWS), rng.normal(size=WEEKLY_ROWS)
    seed = int(rng.integers(2**32))
    for _ in range(WEEKS):
        if rows == "fresh":
            hardness, own = rng.normal(size=WEEKLY_ROWS), rng.normal(size=WEEKLY_ROWS)
            seed = int(rng.integers(2**32))
        new, noise = float(rng.normal(QUALITY, WEEKLY_SPREAD)), rng.normal(size=WEEKLY_ROWS)
        right = {"champion": _right(quality, hardness, own, rho), "candidate": _right(new, hardness, noise, rho)}
        of_rows = np.random.default_rng(seed)  # the same rows have the same decisions and the same weaker rivals
        expected = of_rows.integers(0, len(DECISIONS), WEEKLY_ROWS)
        wrong = (expected + of_rows.integers(1, len(DECISIONS), WEEKLY_ROWS)) % len(DECISIONS)
        evidence = evidence_of(of_rows, expected, wrong, right, np.arange(WEEKLY_ROWS))
        if decide(evidence, CONFIG).outcome == BECOMES_CHAMPION if rule == "gate" else old_rule(evidence):
            promotions, worse = promotions + 1, worse + (new < quality)
            quality, own = new, noise
    return promotions, worse, quality


def _right(quality: float, hardness: np.ndarray, own: np.ndarray, rho: float) -> np.ndarray:
    return np.sqrt(rho) * hardness + np.sqrt(1 - rho) * own < norm.ppf(quality)


# What is published


def table(found: list[Cell], weeks: list[Weeks]) -> str:
    """The results as Markdown."""
    power = {(cell.rows, cell.gain): cell for cell in found if cell.kind == "power"}
    head = ["held-out rows", *map(_gain, GAINS)]
    lines = [_line(head), _line(["--:"] * len(head))]
    for rows in ROWS:
        shares = [power[rows, gain] for gain in GAINS]
        lines.append(_line([f"{rows:,}", *(f"{cell.promoted:.1%} ({cell.old_rule:.0%})" for cell in shares)]))
    harm = [cell for cell in found if cell.kind == "harm"]
    tied = {cell.gain: cell for cell in found if cell.kind == "tied"}
    gates, rows = harm[0].gates, next(iter(tied.values())).rows
    return "\n".join(
        [
            f"Share of adapters that become champion, by their true gain over the champion; in brackets by the rule "
            f"*more right than every rival*. {gates:,} simulated comparisons a cell, all checks; the two disagree on "
            f"{DIFFERING:.0%} of the rows.\n",
            *lines,
            "",
            f"**Tied rows.** {rows:,} rows about {rows // TIE} customers, answered alike: equal adapters are promoted "
            f"in {tied[0.0].promoted:.1%} (by *more right* in {tied[0.0].old_rule:.0%}), adapters better by "
            f"{100 * HARM_GAIN:.0f} points in {tied[HARM_GAIN].promoted:.0%}.",
            "",
            f"**Harm.** An adapter that is right on {100 * HARM_GAIN:.0f} points more rows and grants "
            f"{100 * HARM_RISE:.0f} points more against the policy is promoted in "
            + ", ".join(f"{cell.promoted:.1%} at {cell.rows:,} rows" for cell in harm)
            + f" (by *more right* in up to {max(cell.old_rule for cell in harm):.0%}).",
            "",
            f"**A year.** {WEEKS} weekly challengers whose true accuracy varies by {100 * WEEKLY_SPREAD:.0f} points "
            f"around {QUALITY:.0%}, {WEEKLY_ROWS} rows, means of {weeks[0].histories} simulated years:",
            "",
            _line(["rule", "rows", "promotions", "to a truly worse adapter", "true accuracy at the end"]),
            _line(["---", "---", "--:", "--:", "--:"]),
            *(_line([w.rule, w.rows, f"{w.promotions:.1f}", f"{w.worse:.2f}", f"{w.last_quality:.1%}"]) for w in weeks),
            "",
        ]
    )


def _gain(gain: float) -> str:
    points = round(100 * gain)
    return f"+{points} {'point' if points == 1 else 'points'}" if points else "equal quality"


def _line(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def draw(found: list[Cell], path: Path) -> None:
    """Power by number of rows, one line for each true gain."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    shades = ("#b0302a", "#9ecae1", "#6baed6", "#2171b5", "#08306b")
    for gain, shade in zip(GAINS, shades, strict=True):
        shares = [cell.promoted for cell in found if cell.kind == "power" and cell.gain == gain]
        name = f"true gain {_gain(gain)}" if gain else _gain(gain)
        axes.plot(ROWS, shares, "o-", color=shade, label=name)
    axes.axhline(0.05, color="#5f5f5f", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="held-out rows", ylabel="share promoted", ylim=(0, 1.02))
    axes.set_title("How often an adapter becomes champion", loc="left")
    axes.set_xticks(ROWS, [f"{rows:,}" for rows in ROWS])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def section(found: list[Cell], weeks: list[Weeks]) -> str:
    """The table and the picture of the page."""
    return f"{table(found, weeks)}\n![How often an adapter becomes champion, by held-out rows]({PICTURE.name})\n"


def load() -> tuple[list[Cell], list[Weeks]]:
    """The last results."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [Cell(**cell) for cell in results["cells"]], [Weeks(**week) for week in results["weeks"]]


def publish(found: list[Cell], weeks: list[Weeks]) -> None:
    """Write the picture and the page's section."""
    draw(found, PICTURE)
    write_section(PAGE, SECTION, section(found, weeks))


def main() -> None:
    """Simulate; a full run also writes results, table and picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundred comparisons a cell; changes no page")
    parser.add_argument("--render", action="store_true", help="write page and picture from the last results")
    arguments = parser.parse_args()
    if arguments.render:
        publish(*load())
        return
    found = []
    console = Console()
    for cell in cells(100 if arguments.quick else 2_000):
        found.append(cell)
        console.print(f"{cell.kind:6}{cell.rows:6,} rows {100 * cell.gain:+3.0f}: {cell.promoted:6.1%} {cell.outcomes}")
    histories = 5 if arguments.quick else 100
    weeks = [weekly(rule, rows, histories) for rule in ("gate", "more right") for rows in ("same", "fresh")]
    console.print(table(found, weeks))
    if not arguments.quick:
        results = {"cells": [asdict(cell) for cell in found], "weeks": [asdict(week) for week in weeks]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        publish(found, weeks)


if __name__ == "__main__":
    main()
