"""Predictions by a line: the textbook's formula, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from halos_eval.analysis.prediction import LEAST, Line, fit


def test_the_interval_is_that_of_the_matrix_formula():
    """Prediction error: s² (1 + x0' (X'X)^-1 x0), with n - 2 degrees of freedom."""
    random = np.random.default_rng(6)
    old = random.uniform(10, 60, 9)
    new = 5 + 0.8 * old + random.normal(0, 2, 9)
    line = fit(old.tolist(), new.tolist())
    design = np.column_stack([np.ones(9), old])
    beta, residuals, *_ = np.linalg.lstsq(design, new)
    at = np.array([1, 47.0])
    half = stats.t.ppf(0.975, 7) * np.sqrt(residuals[0] / 7 * (1 + at @ np.linalg.inv(design.T @ design) @ at))
    found = line.at(47)
    assert (found.value, found.low, found.high) == pytest.approx((at @ beta, at @ beta - half, at @ beta + half))
    assert (line.intercept, line.slope) == pytest.approx(tuple(beta))


def test_a_prediction_outside_of_the_known_scores_is_marked():
    line = fit([10, 20, 30, 40, 50], [12, 19, 33, 41, 50])
    assert [line.within(one) for one in (9.9, 10, 30, 50, 50.1)] == [False, True, True, True, False]
    assert line.at(90).high - line.at(90).low > line.at(30).high - line.at(30).low


def test_too_few_checkpoints_give_no_line():
    assert fit([1, 2, 3, 4], [1, 2, 3, 4]) == f"4 common checkpoints; a prediction needs {LEAST}"
    assert fit([], []) == f"0 common checkpoints; a prediction needs {LEAST}"
    assert fit([3] * 6, [1, 2, 3, 4, 5, 6]) == "all known scores are equal"
    assert isinstance(fit([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]), Line)


@pytest.mark.parametrize("n", [5, 12])
def test_95_of_100_intervals_have_the_new_score(n):
    """Both scores of a checkpoint have an error, also those of the new one."""
    random = np.random.default_rng(7)
    hits = 0
    for _ in range(1000):
        true = random.normal(30, 10, n + 1)
        old, new = true + random.normal(0, 1.5, n + 1), 3 + 0.9 * true + random.normal(0, 1.5, n + 1)
        found = fit(old[:n].tolist(), new[:n].tolist()).at(old[n])
        hits += found.low <= new[n] <= found.high
    assert 0.935 <= hits / 1000 <= 0.965
