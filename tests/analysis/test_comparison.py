"""Differences and rank correlations, compared with SciPy and with populations whose values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from halos_eval.analysis.comparison import mean_difference, rank_correlation


def test_a_difference_has_students_interval():
    values = [1.0, 2.0, 4.0, -1.0]
    found = mean_difference([[one] for one in values])
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5 - half, 1.5 + half))


def test_differences_of_one_item_count_as_their_mean():
    assert mean_difference([[1, 3], [4], [], [0, 0, 0]]) == mean_difference([[2], [4], [0]])


@pytest.mark.parametrize(("items", "value"), [([[2]], 2), ([[2, 4]], 3), ([[0], [0], [0]], 0)])
def test_without_variation_there_is_no_interval(items, value):
    found = mean_difference(items)
    assert (found.value, found.low, found.high) == (value, None, None)
    assert mean_difference([]) is None


def test_95_of_100_intervals_have_the_true_difference():
    """100 prompts, each with an effect of its own on the differences of eight checkpoints."""
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(1000):
        items = 2 + random.normal(0, 5, (100, 1)) + random.normal(0, 3, (100, 8))
        found = mean_difference(items.tolist())
        hits += found.low <= 2 <= found.high
    assert 0.935 <= hits / 1000 <= 0.965


@pytest.mark.parametrize(("coefficient", "expected"), [("kendall", stats.kendalltau), ("spearman", stats.spearmanr)])
def test_the_coefficients_are_those_of_scipy(coefficient, expected):
    random = np.random.default_rng(4)
    old = random.normal(size=15)
    new = old + random.normal(size=15)
    found = rank_correlation(old, new, coefficient)
    assert found.value == pytest.approx(expected(old, new).statistic)
    assert -1 < found.low < found.value < found.high < 1


def test_few_checkpoints_and_a_perfect_order_have_no_interval():
    ramp = list(range(12))
    assert rank_correlation([1, 2, 3, 5], [1, 3, 2, 5], "kendall").low is None
    assert rank_correlation(ramp, ramp, "spearman").model_dump() == {
        "value": pytest.approx(1),
        "low": None,
        "high": None,
    }
    assert rank_correlation(ramp, ramp[::-1], "kendall").value == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [1, 2, 3], "kendall") is None
    assert rank_correlation([1], [1], "spearman") is None


@pytest.mark.parametrize("n", [10, 30])
@pytest.mark.parametrize("coefficient", ["kendall", "spearman"])
def test_95_of_100_intervals_have_the_true_correlation(coefficient, n):
    """Of normal scores with correlation r, tau is 2/pi arcsin(r) and rho 6/pi arcsin(r/2)."""
    r = 0.7
    truth = 2 / math.pi * math.asin(r) if coefficient == "kendall" else 6 / math.pi * math.asin(r / 2)
    random = np.random.default_rng(5)
    hits = total = 0
    for _ in range(600):
        old, new = random.multivariate_normal([0, 0], [[1, r], [r, 1]], n).T
        found = rank_correlation(old, new, coefficient)
        if found.low is not None:
            total += 1
            hits += found.low <= truth <= found.high
    assert total > 590
    assert 0.92 <= hits / total <= 0.98
