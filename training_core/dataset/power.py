"""How many held-out rows show how large a gain, before and after two models have answered them."""

from math import ceil, sqrt

from scipy.optimize import brentq
from scipy.stats import norm

POWER, LEVEL = 0.8, 0.05
USUAL_DIFFERENCE = 0.15  # share of rows on which two adapters of one recipe disagree: 11 to 16% of the demo's rows
_Z_LEVEL, _Z_POWER = float(norm.ppf(1 - LEVEL)), float(norm.ppf(POWER))


def rows_needed(gain: float, differing: float) -> int:
    """Rows on which McNemar's one-sided test at 5% sees a true gain in four of five comparisons (80% power).

    ``gain`` is the difference in accuracy, above 0, ``differing`` the share of rows on which one model is right and the
    other is wrong, at least ``gain``. Connor (1987), "Sample size for testing differences in proportions for the
    paired-sample design", Biometrics 43(1): n = ((1.645 √d + 0.842 √(d − g²)) / g)².

        rows_needed(0.05, 0.15) → 369
    """
    return ceil(_needed(gain, max(gain, differing)))


def detectable_gain(rows: int, differing: float = USUAL_DIFFERENCE) -> float | None:
    """The smallest gain in accuracy that so many rows show at 80% power; ``None`` where they can show none at all.

    detectable_gain(127) → 0.085: two models that disagree on 15% of 127 rows must be 8.5 points apart
    """
    if rows < 1 or _needed(differing, differing) > rows:
        return None
    return float(brentq(lambda gain: _needed(gain, differing) - rows, 1e-6, differing))


def _needed(gain: float, differing: float) -> float:
    return ((_Z_LEVEL * sqrt(differing) + _Z_POWER * sqrt(differing - gain**2)) / gain) ** 2
