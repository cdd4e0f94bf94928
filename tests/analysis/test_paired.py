"""Paired differences: the numbers of SciPy and statsmodels, and what simulations find of levels and power."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test

from halos_eval.analysis import paired as module
from halos_eval.analysis.paired import CLUSTERED, MCNEMAR, PERMUTATION, STUDENT, detectable, holm, mcnemar, paired


def alone(values):
    """Each item is a cluster of its own."""
    return [str(number) for number in range(len(values))]


def changed(better, worse, same):
    """Right and wrong answers: so many items got better, worse, and stayed right."""
    return [1.0] * better + [0.0] * worse + [1.0] * same, [0.0] * better + [1.0] * worse + [1.0] * same


@pytest.fixture
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 199)


@pytest.mark.parametrize(("better", "worse", "same"), [(2, 9, 13), (30, 12, 400), (0, 10, 6), (0, 0, 24)])
def test_right_and_wrong_answers_get_mcnemars_exact_test(better, worse, same):
    a, b = changed(better, worse, same)
    found = paired(a, b, alone(a))
    assert (found.test, found.n, found.clusters) == (MCNEMAR, len(a), None)
    assert found.difference == pytest.approx((better - worse) / len(a))
    assert found.p == pytest.approx(mcnemar_test([[same, better], [worse, 0]], exact=True).pvalue)
    assert found.low < found.difference < found.high


def test_the_interval_of_shares_is_that_of_bonett_and_price():
    # Bonett and Price 2012, formula 8, with Student's quantile and n - 1 in place of the normal one and n
    a, b = changed(15, 5, 80)
    one, other, n = 16 / 102, 6 / 102, 102
    error = np.sqrt((one + other - (one - other) ** 2) / (n - 1))
    half = stats.t.ppf(0.975, n - 1) * error
    found = paired(a, b, alone(a))
    assert (found.low, found.high) == (pytest.approx(one - other - half), pytest.approx(one - other + half))


def test_an_interval_without_any_change_is_as_wide_as_few_items_make_it():
    few, many = (paired([1.0] * n, [1.0] * n, alone(range(n))) for n in (24, 2400))
    assert few.p == many.p == 1
    assert few.high == pytest.approx(0.11, abs=0.01)
    assert many.high == pytest.approx(0.0012, abs=0.0001)


def test_other_values_are_permuted(fewer_resamples):
    random = np.random.default_rng(0)
    a, b = random.random(9), random.random(9) + 0.3
    found = paired(a, b, alone(a))
    exact = stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf)
    monte_carlo = paired(random.random(40), random.random(40), alone(range(40)))
    assert found.test == monte_carlo.test == PERMUTATION
    assert found.p == pytest.approx(exact.pvalue, abs=0.05)


def test_one_value_is_no_evidence():
    found = paired([0.25], [1.0], ["a"])
    assert (found.n, found.difference, found.p, found.test) == (1, -0.75, 1, PERMUTATION)
    assert found.low == -1


def test_many_values_get_students_test():
    random = np.random.default_rng(0)
    a, b = random.random(1001), random.random(1001) + 0.02
    found = paired(a, b, alone(a))
    assert found.test == STUDENT
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(stats.ttest_rel(a, b).confidence_interval()), abs=2e-3)


def test_dependent_items_get_the_errors_of_statsmodels():
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(200), 5)
    a = (random.random(1000) < 0.5 + random.normal(0, 0.2, 200)[clusters]).astype(float)
    b = (random.random(1000) < 0.5).astype(float)
    found = paired(a, b, list(map(str, clusters)))
    fit = sm.OLS(a - b, np.ones(1000)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    assert (found.test, found.clusters) == (CLUSTERED, 200)
    assert found.difference == pytest.approx(fit.params[0])
    # One more cluster in each direction makes it a little wider.
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]), abs=0.01)
    assert found.high - found.low > np.diff(fit.conf_int()[0])[0]


def test_too_few_clusters_say_nothing():
    assert paired([1.0] * 8, [0.0] * 8, ["a", "b", "c", "d"] * 2) is None
    assert paired([], [], []) is None


def test_equal_answers_in_clusters_have_an_interval():
    found = paired([1.0] * 100, [1.0] * 100, [str(number // 5) for number in range(100)])
    assert (found.p, found.difference) == (pytest.approx(1), 0)
    assert -0.25 < found.low < 0 < found.high < 0.25


def test_holms_correction():
    # Holm 1979: 3 * 0.01, then 2 * 0.02, then the largest as it is
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([]) == []


def test_under_no_difference_five_percent_of_comparisons_differ(fewer_resamples):
    random = np.random.default_rng(1)
    found = [paired(*random.random((2, 40)), alone(range(40))) for _ in range(400)]
    assert np.mean([one.p <= 0.05 for one in found]) == pytest.approx(0.05, abs=0.025)
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.93


def test_under_no_difference_mcnemars_test_differs_in_at_most_five_percent():
    random = np.random.default_rng(1)
    counts = random.binomial(1000, 0.3, 2000)
    better = random.binomial(counts, 0.5)
    share = np.mean([mcnemar(int(one), int(all_ - one)) < 0.05 for one, all_ in zip(better, counts, strict=True)])
    assert 0.025 < share <= 0.055


def test_under_no_difference_clusters_differ_in_five_percent():
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(100), 4)
    names, rejected = list(map(str, clusters)), []
    for _ in range(400):
        effects = random.normal(0, 0.25, (2, 100))[:, clusters]
        a, b = (random.random((2, 400)) < 0.5 + effects).astype(float)
        rejected.append(paired(a, b, names).p < 0.05)
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize(("n", "share"), [(100, 0.2), (1000, 0.2), (5000, 0.05), (24, 0.1)])
@pytest.mark.parametrize("tests", [1, 12])
def test_the_promised_power_of_mcnemars_test_is_found(n, share, tests):
    a, b = changed(round(n * share / 2), round(n * share / 2), n - 2 * round(n * share / 2))
    smallest = detectable(paired(a, b, alone(a)), tests)
    random = np.random.default_rng(2)
    share = max(2 * round(n * share / 2) / n, smallest)
    counts = random.binomial(n, share, 2000)
    better = random.binomial(counts, (1 + smallest / share) / 2)
    # The exact test of many pairs of counts at once: the p-value is that of the rarer direction, twice.
    values = np.minimum(1, 2 * stats.binom.cdf(np.minimum(better, counts - better), counts, 0.5))
    assert np.mean(values < 0.05 / tests) == pytest.approx(0.8, abs=0.03)


def test_the_promised_power_of_students_test_is_found():
    random = np.random.default_rng(3)
    example = random.normal(0, 0.3, 1500)
    smallest = detectable(paired(example, np.zeros(1500), alone(example)), 4)
    drawn = random.normal(smallest, 0.3, (2000, 1500))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05 / 4) == pytest.approx(0.8, abs=0.05)


def test_what_four_items_can_find():
    a, b = changed(0, 0, 4)
    assert detectable(paired(a, b, alone(a)), 1) == 1  # nothing: even four changes of four are no evidence
