"""Decide or hand over: above which confidence cases are decided automatically, with a bound on the expensive errors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import beta, binom

from training_core.config import RunConfig
from training_core.dataset.evaluation_findings import same_decision
from training_core.evaluation.evidence import load_evidence_rows, load_predictions
from training_core.evaluation.scores import Prediction

LEVEL = 0.05
NOTHING_AUTOMATIC = 1.0  # no confidence is above it


@dataclass(frozen=True)
class Handover:
    """Cases with a confidence above ``threshold`` are decided automatically, the others are handed over to a person.

    ``rows`` are the held-out rows that this is shown on, one of each tie; of the ``automatic`` ones ``errors`` are
    wrongly decided in the customer's favour. ``bound``: the share of such errors among all cases like the automatic
    ones is below it with 95% confidence. ``needed``: the automatic rows without an error that show the wanted bound.
    """

    threshold: float
    rows: int
    automatic: int
    errors: int
    bound: float
    needed: int
    wanted: float

    @property
    def share(self) -> float:
        """The share of the rows that is decided automatically."""
        return self.automatic / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        if not self.automatic:
            return (
                f"Every case is handed over: no confidence keeps false approvals below {self.wanted:.2%} "
                f"for certain. At least {self.needed:,} held-out rows without one are needed; there are {self.rows:,}."
            )
        rest = f"{self.wanted:.2%} are allowed. The other cases are handed over."
        return (
            f"{self.share:.1%} of the cases are decided automatically, those with a confidence above "
            f"{self.threshold:.4f}: {self.errors:,} of {self.automatic:,} such rows are false approvals, so with "
            f"95% confidence less than {self.bound:.2%} of such cases are; {rest}"
        )


def is_handed_over(confidence: float | None, threshold: float | None) -> bool:
    """Whether a person decides a case with this confidence; without a threshold nobody does."""
    return threshold is not None and (confidence is None or confidence <= threshold)


def load_handover(folder: Path, config: RunConfig) -> Handover | None:
    """The rule for the candidate, from a folder that ``save_comparison`` wrote; ``None`` without the setting."""
    ties = [row.tie for row in load_evidence_rows(folder)]
    return hand_over(load_predictions(folder)["candidate"], ties, config)


def hand_over(predictions: Sequence[Prediction], ties: Sequence[int], config: RunConfig) -> Handover | None:
    """The rule for the settings' ``max_automatic_error``, from a model's held-out answers and the ties of the rows.

    ``None`` where that is not set. Rows of a tie are not independent, so the first of each stands for it.
    """
    if config.max_automatic_error is None:
        return None
    first = np.unique(np.asarray(ties), return_index=True)[1]
    favourable = set(map(same_decision, config.favourable_decisions))
    kept = [predictions[row] for row in first]
    confidence = np.array([found.confidence if found.usable and found.confidence else 0.0 for found in kept])
    errors = [same_decision(found.decision) in favourable and not found.right for found in kept]
    return find_threshold(confidence, np.array(errors), config.max_automatic_error)


def find_threshold(confidence: np.ndarray, errors: np.ndarray, wanted: float) -> Handover:
    """The lowest threshold that is shown to keep the share of errors below ``wanted``; arrays are [independent rows].

    Learn then Test (Angelopoulos et al., arXiv:2110.01052) with fixed-sequence testing: the numbers of rows that are
    tried are fixed beforehand, from few to all. A number's threshold is the confidence of the next row. Given that,
    the rows above are a sample of all cases above it, so the exact binomial test (Clopper and Pearson, 1934) is valid.
    Equal confidences can leave too few rows above to show anything: such a number is left out, whatever the errors are.
    The first test that fails ends the search, so a threshold whose share of errors is above ``wanted`` is chosen with a
    probability of 5% at most.
    """
    order = np.sort(confidence)[::-1]
    needed = fewest_rows(0, wanted)
    best = Handover(NOTHING_AUTOMATIC, len(confidence), 0, 0, 1.0, needed, wanted)
    for rows in _tried(len(confidence), wanted):
        threshold = float(order[rows]) if rows < len(order) else 0.0
        above = confidence > threshold
        automatic, wrong = int(above.sum()), int(errors[above].sum())
        if automatic < needed:
            continue
        if binom.cdf(wrong, automatic, wanted) > LEVEL:
            break
        best = Handover(threshold, len(confidence), automatic, wrong, upper_bound(wrong, automatic), needed, wanted)
    return best


@cache
def fewest_rows(errors: int, wanted: float) -> int:
    """The fewest rows on which so many errors show that their share is below ``wanted``."""
    low, high = errors, int((errors + 1) * 20 / wanted)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if binom.cdf(errors, middle, wanted) <= LEVEL else (middle + 1, high)
    return low


def upper_bound(errors: int, rows: int) -> float:
    """The upper 95% bound of Clopper and Pearson of a share."""
    return float(beta.ppf(1 - LEVEL, errors + 1, rows - errors)) if errors < rows else 1.0


def _tried(rows: int, wanted: float) -> Iterator[int]:
    """The numbers of rows that are tried: the fewest that can show it with 0, 1, 2, … errors, and all."""
    errors = 0
    while (fewest := fewest_rows(errors, wanted)) < rows:
        yield fewest
        errors += 1
    if fewest_rows(0, wanted) <= rows:
        yield rows
