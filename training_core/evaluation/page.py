"""The report on an evaluation as one HTML page that needs nothing besides itself: no script, no network, no font."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Template

from training_core.config import RunConfig
from training_core.evaluation.comparison import load_free_answers, load_scores
from training_core.evaluation.evidence import (
    Evidence,
    EvidenceRow,
    evidence_of,
    load_evidence_rows,
    load_left_out,
    load_policies,
    load_predictions,
)
from training_core.evaluation.gate import CANDIDATE, HOLDS, VIOLATED, Verdict, decide, reference_of, slice_tests
from training_core.evaluation.handover import Handover, hand_over
from training_core.evaluation.reliability import RELIABILITY_FILE, calibration_error, reliability_bins
from training_core.evaluation.report import score_grid
from training_core.evaluation.scores import Prediction
from training_core.evaluation.worst_rows import limit_pairs, worst_rows
from training_core.grid import Grid
from training_core.pages import page_environment
from training_core.trainer import SUMMARY_FILE

TEMPLATE = "page.html.jinja"
MOST_SLICES = 30
MOST_DECISIONS = 12

_PICTURES = {"loss_curve.png": "Loss over the optimiser steps"}


@dataclass(frozen=True)
class PageFacts:
    """What the page says besides the evaluation: ``title`` names the version; ``lineage`` has digests, commit and dates
    by name; ``changes`` says what differs from the champion's run (what, before, now); ``commands`` what a person may
    run, each with what it does; ``grids`` are more tables, such as row accounting and the cost of the training;
    ``served_threshold`` is the confidence above which the version decides automatically, if it has one."""

    title: str = "Candidate"
    lineage: Mapping[str, str] = field(default_factory=dict)
    changes: Sequence[tuple[str, str, str]] = ()
    commands: Sequence[tuple[str, str]] = ()
    grids: Sequence[Grid] = ()
    served_threshold: float | None = None


class SliceRow(NamedTuple):
    """A slice as the page shows it: rows won and lost against the reference."""

    name: str
    rows: int
    wins: int
    losses: int


class Confusion(NamedTuple):
    """Expected (rows) against given decisions (columns) of one model."""

    model: str
    decisions: list[str]
    counts: list[list[int]]
    most: int


def render_report(
    folder: Path, config: RunConfig, facts: PageFacts | None = None, verdict: Verdict | None = None
) -> str:
    """The page on an evaluation folder that ``save_comparison`` wrote; without a verdict, with the gate's on it.

    Equal arguments give equal pages, and what is in a row stays text whatever it looks like.
    """
    rows, predictions = load_evidence_rows(folder), load_predictions(folder)
    policies = load_policies(folder)
    evidence = evidence_of(rows, predictions, load_left_out(folder), policies)
    reference = reference_of(evidence)
    pair = predictions[CANDIDATE], predictions[reference]
    facts = facts or PageFacts()
    return _template().render(
        facts=facts,
        verdict=verdict or decide(evidence, config),
        reference=reference,
        scores=score_grid(load_scores(folder), evidence.left_out),
        slices=_slices(evidence, config),
        confusions=[_confusion(evidence, name) for name in (reference, CANDIDATE)],
        worst=worst_rows(rows, *pair, policies, config),
        policies=policies,
        pairs=limit_pairs(rows, *pair),
        wrong=sum(not found.right for found in pair[0]),
        form=_form(folder),
        confidence=_confidence(predictions[CANDIDATE], rows, config, facts.served_threshold),
        reliability=_as_data_url(folder / RELIABILITY_FILE) if (folder / RELIABILITY_FILE).is_file() else "",
        pictures={text: _as_data_url(folder / name) for name, text in _PICTURES.items() if (folder / name).is_file()},
        cost=_cost(folder / SUMMARY_FILE),
    )


def _slices(evidence: Evidence, config: RunConfig) -> list[SliceRow]:
    """The slices that were tested, those with the largest loss first."""
    found = [SliceRow(name, test.rows, test.wins, test.losses) for name, test in slice_tests(evidence, config)]
    return sorted(found, key=lambda one: (one.wins - one.losses) / one.rows)[:MOST_SLICES]


def _confusion(evidence: Evidence, model: str) -> Confusion:
    """The commonest expected decisions by name, all others as one."""
    numbers, counts = np.unique(evidence.expected, return_counts=True)
    shown = [int(number) for number in numbers[np.argsort(-counts, kind="stable")][:MOST_DECISIONS]]
    place = np.full(len(evidence.decisions), len(shown))
    place[shown] = np.arange(len(shown))
    given = np.where(evidence.models[model].usable, place[evidence.models[model].decision], len(shown))
    table = np.zeros((len(shown) + 1, len(shown) + 1), int)
    np.add.at(table, (place[evidence.expected], given), 1)
    names = [*(evidence.decisions[number] for number in shown), "other or not usable"]
    kept = len(shown) + int(table[-1].any())
    return Confusion(model, names, table[:kept].tolist(), int(table.max()))


def _form(folder: Path) -> str:
    """What the candidate answers without its grammar, in a sentence; empty where it has none."""
    free = load_free_answers(folder)
    if free is None:
        return ""
    without = free.scores
    return (
        f"Answers are held to a form (constrain). It changed {free.changed:,} of {without.rows:,} answers of the "
        f"candidate; without it {without.accuracy:.1%} are right, {without.usable:.1%} usable and "
        f"{without.false_approvals:.1%} false approvals."
    )


def _confidence(
    predictions: Sequence[Prediction], rows: Sequence[EvidenceRow], config: RunConfig, served: float | None
) -> list[str]:
    """How far the candidate's confidence can be trusted, and which cases it decides; nothing where it has none."""
    bins = reliability_bins(predictions)
    if not bins:
        return []
    error = f"Expected calibration error: {calibration_error(bins):.3f} (10 ranges of confidence)."
    rule = hand_over(predictions, [row.tie for row in rows], config)
    return [error, *([str(rule), *_served_rule(rule, served)] if rule else [])]


def _served_rule(rule: Handover, served: float | None) -> list[str]:
    """A re-evaluation may find another threshold on its rows; the version keeps the one it was registered with."""
    if served is None or served == rule.threshold:
        return []
    return [
        f"The version does not use this threshold: it was registered with {served:.4f}, and decides the cases with a "
        "confidence above that. A new training is registered with a threshold of its own."
    ]


def _cost(summary: Path) -> dict[str, str]:
    """What the training took, in words; nothing where the adapter was only evaluated again."""
    if not summary.is_file():
        return {}
    cost = json.loads(summary.read_text(encoding="utf-8"))
    resumed = f", resumed from step {cost['resumed_from_step']:,}" if cost["resumed_from_step"] else ""
    return {
        "optimiser steps": f"{cost['steps']:,}{resumed}",
        "duration": f"{timedelta(seconds=round(cost['seconds']))}{' since it was resumed' if resumed else ''}",
        "peak memory": f"{cost['peak_memory_gib']:.2f} GiB on the first device",
        "tokens": f"{cost['tokens_before_sharing']:,} before sharing of policies",
        "final loss": f"{cost['final_loss']:.4f}",
    }


def _as_data_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


@cache
def _template() -> Template:
    environment = page_environment()
    environment.filters |= {"number": "{:,}".format, "points": _points, "p": _p, "answer": _answer, "case": _case}
    environment.globals |= {"HOLDS": HOLDS, "VIOLATED": VIOLATED, "position": _position}
    return environment.from_string(files("training_core.evaluation").joinpath(TEMPLATE).read_text(encoding="utf-8"))


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: never "-0.0"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _position(share: float, widest: float) -> float:
    """Where a gain is on a line from -widest to +widest, in per cent."""
    return round(50 + 50 * max(-1.0, min(1.0, share / widest)), 2)


def _answer(text: str) -> list[tuple[str, str]]:
    """An answer's fields; the text as it is where it is no object."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return [("", text)]
    return [(str(name), value if isinstance(value, str) else json.dumps(value)) for name, value in found.items()]


def _case(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fields of a row's case, or the turns of its conversation."""
    if "messages" in record:
        return [(str(turn["role"]), str(turn["content"])) for turn in record["messages"]]
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in record["input"].items()]
