"""Paired tests give the figures of other libraries, and hold their level where rows are tied."""

import numpy as np
import pytest
from scipy.stats import binom, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from training_core.dataset.power import detectable_gain, rows_needed
from training_core.evaluation.paired_tests import (
    compare_paired,
    gain_bounds,
    holm,
    lower_mean_p,
    mcnemar_mid_p,
    sign_flip_mid_p,
)


def pairs(seed: int, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(rows) < 0.7, rng.random(rows) < 0.6


@pytest.mark.parametrize("seed", range(20))
def test_promotion_p_values_equal_those_of_statsmodels(seed: int) -> None:
    """statsmodels has the exact two-sided test: half of it, less half the probability of what was observed, is the
    mid-p of the side on which more rows are."""
    first, second = pairs(seed, rows=60 + 10 * seed)
    table = [[np.sum(first & second), np.sum(first & ~second)], [np.sum(~first & second), np.sum(~first & ~second)]]
    exact = mcnemar(table, exact=True).pvalue
    wins, losses = int(table[0][1]), int(table[1][0])
    mid = exact / 2 - binom.pmf(min(wins, losses), wins + losses, 0.5) / 2 if wins != losses else 0.5
    found = compare_paired(first, second, np.arange(len(first)))
    assert found.p == pytest.approx(mid if wins >= losses else 1 - mid, abs=1e-12)
    assert (found.wins, found.losses) == (wins, losses)


@pytest.mark.parametrize("counts", [(8, 2), (0, 0), (0, 5), (31, 31), (200, 150)])
def test_sign_flip_test_without_ties_is_mcnemars(counts: tuple[int, int]) -> None:
    sums = np.array([1] * counts[0] + [-1] * counts[1] + [0] * 7)
    assert sign_flip_mid_p(sums) == pytest.approx(mcnemar_mid_p(*counts), abs=1e-12)


def test_sign_flip_test_equals_scipys_permutation_test() -> None:
    sums = np.random.default_rng(1).integers(-3, 5, 14)
    every = permutation_test((sums,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf)
    equal = np.mean(every.null_distribution == sums.sum())
    assert sign_flip_mid_p(sums) == pytest.approx(every.pvalue - equal / 2, abs=1e-12)


def test_tied_rows_count_as_one_observation() -> None:
    """Ten cases of twenty equal rows are ten observations, whatever the number of rows."""
    once = np.array([1] * 7 + [0] * 3, bool)
    other = ~once
    alone = compare_paired(once, other, np.arange(10))
    copied = compare_paired(np.repeat(once, 20), np.repeat(other, 20), np.repeat(np.arange(10), 20))
    assert copied.p == pytest.approx(alone.p)
    assert copied.wins == 20 * alone.wins and copied.units == 10
    assert copied.low < 0 < copied.gain, "the bounds are as wide as for ten rows"
    loose = compare_paired(np.repeat(once, 20), np.repeat(other, 20), np.arange(200))
    assert loose.p < 1e-8


@pytest.mark.parametrize("wins", [0, 3, 30])
def test_gain_bounds_are_those_of_bonett_and_price(wins: int) -> None:
    """Their formula for independent rows: counts plus one, rows plus two."""
    losses, rows = 4, 120
    more, fewer = (wins + 1) / (rows + 2), (losses + 1) / (rows + 2)
    error = 1.6448536269514722 * np.sqrt((more + fewer - (more - fewer) ** 2) / (rows + 2))
    sums = np.array([1] * wins + [-1] * losses + [0] * (rows - wins - losses))
    assert gain_bounds(sums, np.ones(rows)) == pytest.approx((more - fewer - error, more - fewer + error))


@pytest.mark.parametrize("size", [1, 4])
def test_gain_bounds_cover_the_true_gain(size: int) -> None:
    """A bound on one side misses in about 5% of 2,000 samples, with tied rows too."""
    rng = np.random.default_rng(2)
    ties = np.repeat(np.arange(60), size)
    shift = rng.choice([-1, 0, 1], p=[0.05, 0.85, 0.1], size=(2_000, 60))
    sums = shift * size
    missed = np.mean([gain_bounds(own, np.bincount(ties))[0] > 0.05 for own in sums])
    assert 0.005 < missed < 0.075


def test_lower_mean_sees_worse_texts_and_no_others() -> None:
    rng = np.random.default_rng(3)
    scores, ties = rng.random(100), np.arange(100)
    worse = scores - 0.1 + rng.normal(0, 0.1, 100)
    assert lower_mean_p(worse, scores, ties) < 1e-6
    assert lower_mean_p(scores, worse, ties) > 0.999
    assert lower_mean_p(scores, scores, ties) == 1.0
    assert lower_mean_p(scores - 1, scores - 0.5, ties) < 1e-6


def test_holm_equals_that_of_statsmodels() -> None:
    p_values = np.random.default_rng(4).random(12) ** 3
    assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


@pytest.mark.parametrize(("gain", "differing"), [(0.05, 0.15), (0.03, 0.15), (0.1, 0.3)])
def test_rows_needed_give_80_percent_power(gain: float, differing: float) -> None:
    rows, rng = rows_needed(gain, differing), np.random.default_rng(5)
    wins, losses, _ = rng.multinomial(rows, [(differing + gain) / 2, (differing - gain) / 2, 1 - differing], 4_000).T
    seen = np.mean([mcnemar_mid_p(*pair) < 0.05 for pair in zip(wins.tolist(), losses.tolist(), strict=True)])
    assert 0.77 < seen < 0.84
    assert detectable_gain(rows, differing) == pytest.approx(gain, rel=0.01)


def test_too_few_rows_show_no_gain_at_all() -> None:
    assert detectable_gain(0) is None
    assert detectable_gain(30) is None
