"""The same checkpoints with two sets of scores: their difference, and whether the order stays the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from halos_eval.analysis.estimate import CONFIDENCE, Estimate

Coefficient = Literal["kendall", "spearman"]
# Fieller, Hartley and Pearson 1957 (doi.org/10.1093/biomet/44.3-4.470): the variance of the Fisher transform of a
# coefficient of n pairs is FACTOR / (n - LOST).
VARIANCE: dict[Coefficient, tuple[float, int]] = {"kendall": (0.437, 4), "spearman": (1.060, 3)}
ENOUGH = 10
"""Checkpoints from which on that variance holds."""


def mean_difference(items: Sequence[Sequence[float]]) -> Estimate | None:
    """Return the mean of paired differences, with Student's interval; None without an item.

    ``items`` has the differences of each independent item. Several ones of an item count as their mean, because they
    depend on each other.
    """
    from scipy import stats

    means = [sum(one) / len(one) for one in items if one]
    if not means:
        return None
    value = sum(means) / len(means)
    if len(set(means)) < 2:  # without variation no error is known
        return Estimate(value=value)
    low, high = stats.ttest_1samp(means, 0).confidence_interval(CONFIDENCE)
    return Estimate(value=value, low=float(low), high=float(high))


def rank_correlation(old: Sequence[float], new: Sequence[float], coefficient: Coefficient) -> Estimate | None:
    """Return Kendall's tau-b or Spearman's rho of paired scores; None if fewer than two differ in either.

    There is no interval with fewer than ``ENOUGH`` pairs, or if the order is exactly the same or exactly reversed.
    """
    from scipy import stats

    if len(set(old)) < 2 or len(set(new)) < 2:
        return None
    compute = stats.kendalltau if coefficient == "kendall" else stats.spearmanr
    value = float(compute(old, new).statistic)
    if len(old) < ENOUGH or abs(value) > 1 - 1e-12:
        return Estimate(value=value)
    factor, lost = VARIANCE[coefficient]
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(factor / (len(old) - lost))
    center = math.atanh(value)
    return Estimate(value=value, low=math.tanh(center - half), high=math.tanh(center + half))
