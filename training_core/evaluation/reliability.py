"""Whether a confidence is what it says: of the decisions with a confidence of 70%, 70% should be right."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest

from training_core.evaluation.scores import Prediction

matplotlib.use("agg")

BINS = 10
RELIABILITY_FILE = "reliability.png"


class Bin(NamedTuple):
    """The rows whose confidence is in a tenth of the range: their mean confidence, and the share that is right."""

    rows: int
    confidence: float
    accuracy: float

    @property
    def bounds(self) -> tuple[float, float]:
        """How far the 95% Wilson interval reaches below and above the share that is right."""
        low, high = binomtest(round(self.rows * self.accuracy), self.rows).proportion_ci(method="wilson")
        return max(0.0, self.accuracy - low), max(0.0, high - self.accuracy)


def reliability_bins(predictions: Sequence[Prediction]) -> list[Bin]:
    """The answers with a confidence in ten equal ranges of it, empty ones left out."""
    pairs = [(found.confidence, found.right) for found in predictions if found.confidence is not None]
    confidence, right = np.array(pairs, float).reshape(-1, 2).T
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    kept = [place == number for number in np.unique(place)]
    return [Bin(int(own.sum()), float(confidence[own].mean()), float(right[own].mean())) for own in kept]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean over the rows of the distance between confidence and accuracy of their bin.

    Source: Naeini et al. 2015; Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3. ``nan`` without a row.
    """
    rows = sum(one.rows for one in bins)
    return sum(one.rows * abs(one.confidence - one.accuracy) for one in bins) / rows if rows else float("nan")


def draw_reliability(predictions: Sequence[Prediction], path: Path) -> None:
    """Write the reliability picture, where there are answers with a confidence."""
    bins = reliability_bins(predictions)
    if not bins:
        return
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    confidence, accuracy, rows = ([one[place] for one in bins] for place in (1, 2, 0))
    axes.plot((0, 1), (0, 1), color="grey", linestyle="--", label="as it should be")
    bounds = np.transpose([one.bounds for one in bins])
    axes.errorbar(confidence, accuracy, bounds, fmt="o", capsize=3, label="candidate, with 95% interval")
    axes.set(ylabel="share of right decisions", ylim=(-0.05, 1.05), title="Confidence and decisions on held-out rows")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    below.bar(confidence, rows, width=0.05)
    below.set(xlabel="confidence", ylabel="rows", xlim=(-0.05, 1.05))
    for one in (axes, below):
        one.grid(alpha=0.3)
    figure.savefig(path)
