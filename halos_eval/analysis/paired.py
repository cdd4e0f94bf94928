"""Two sets of scores of the same items: their difference, its interval, its p-value, and what could have been found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from halos_eval.analysis.estimate import CONFIDENCE
from halos_eval.config.settings import FROZEN

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]

ALPHA = 1 - CONFIDENCE
POWER = 0.8
"""Share of the cases in which the smallest detectable difference is found."""
PERMUTED = 1000
"""Items up to which values other than right and wrong are permuted. With more, Student's test is as exact."""
RESAMPLES = 9999
SEED = 0
"""The same data always give the same p-value."""
BATCH = 200  # permutations at a time: 1,000 items take 3 MB
FEW = 5
"""Clusters below which nothing is said: the error of so few is not known."""
MCNEMAR = "exact McNemar test"
PERMUTATION = "paired permutation test"
STUDENT = "paired t-test"
CLUSTERED = "paired t-test, clustered errors"


class Paired(BaseModel):
    """The difference of two sets of scores of the same items, first minus second."""

    model_config = FROZEN

    n: int
    """Items."""
    clusters: int | None
    """Independent groups of items; None if each item is independent."""
    difference: float
    """Mean difference."""
    low: float
    """Lower bound of the interval of 95 %."""
    high: float
    """Upper bound of it."""
    p: float
    """Two-sided p-value of no difference."""
    test: str
    """Name of the test."""
    changed: float
    """Share of items that changed between wrong and right; only of McNemar's test, 0 otherwise."""
    deviation: float
    """Standard deviation of the independent differences, with which Student's test would have this interval."""


def paired(first: Sequence[float], second: Sequence[float], clusters: Sequence[str], span: float = 1) -> Paired | None:
    """Return the difference of paired scores; None without an item, or with fewer than ``FEW`` clusters.

    ``clusters`` has equal entries for dependent items. ``span`` is the largest possible difference of two scores.
    Right and wrong answers get McNemar's exact test, other values a permutation test or, beyond ``PERMUTED`` items,
    Student's. Dependent items get cluster-robust errors (statsmodels).
    """
    import numpy as np

    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    if not len(differences):
        return None
    if len(set(clusters)) < len(differences):
        return _clustered(differences, clusters, span)
    low, high, deviation = _interval(differences, span)
    binary = set(first) | set(second) <= {0.0, span}
    if binary:
        p, test = mcnemar(int((differences > 0).sum()), int((differences < 0).sum())), MCNEMAR
    else:
        p, test = _permuted(differences) if len(differences) <= PERMUTED else _student(differences)
    return Paired(
        n=len(differences), clusters=None, difference=float(differences.mean()), low=low, high=high, p=p, test=test,
        changed=float((differences != 0).mean()) if binary else 0, deviation=deviation,
    )  # fmt: skip


def mcnemar(better: int, worse: int) -> float:
    """Return the p-value of McNemar's exact test, given the items that changed in each direction (statsmodels)."""
    from statsmodels.stats.contingency_tables import mcnemar as test

    return float(test([[0, better], [worse, 0]], exact=True).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values with Holm's correction for all of them (statsmodels)."""
    from statsmodels.stats.multitest import multipletests

    return [float(one) for one in multipletests(values, method="holm")[1]] if values else []


def detectable(found: Paired, tests: int, span: float = 1) -> float:
    """Return the smallest true difference that is found in four of five cases, with Holm's strictest level.

    That is the level of the smallest of ``tests`` p-values. Items are assumed to vary as they do here.
    """
    from statsmodels.stats.power import TTestPower

    level = ALPHA / max(1, tests)
    if found.test == MCNEMAR:
        return _detectable_by_mcnemar(found.n, found.changed, level) * span
    count = found.clusters or found.n
    if count < 2 or not found.deviation:
        return span
    effect = float(TTestPower().solve_power(nobs=count, alpha=level, power=POWER))
    return min(span, effect * found.deviation)


def _interval(differences: Numbers, span: float) -> tuple[float, float, float]:
    """Return the interval of a mean difference, and the standard deviation.

    Student's interval of the differences and one more in each direction: for right and wrong answers that is the
    adjusted interval of Bonett and Price (doi.org/10.3102/1076998611411915), which holds for few changed items as well.
    """
    import numpy as np
    from scipy import stats

    with_two = np.append(differences, [span, -span])
    low, high = stats.ttest_1samp(with_two, 0).confidence_interval(CONFIDENCE)
    return max(-span, float(low)), min(span, float(high)), float(with_two.std(ddof=1))


def _permuted(differences: Numbers) -> tuple[float, str]:
    import numpy as np
    from scipy import stats

    if len(differences) < 2:
        return 1.0, PERMUTATION  # both signs of one difference are as large

    def mean(values: Numbers, axis: int) -> Numbers:
        return np.asarray(values.mean(axis=axis))

    found = stats.permutation_test(
        (differences,), mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=BATCH,
        rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return float(found.pvalue), PERMUTATION


def _student(differences: Numbers) -> tuple[float, str]:
    from scipy import stats

    p = 1.0 if not differences.any() else float(stats.ttest_1samp(differences, 0).pvalue)
    return p, STUDENT


def _clustered(differences: Numbers, clusters: Sequence[str], span: float) -> Paired | None:
    """Return the difference with cluster-robust errors, and Student's distribution over the clusters.

    One more cluster in each direction keeps the error honest if no or few items changed, as in `_interval`.
    """
    import numpy as np
    from statsmodels.regression.linear_model import OLS

    sizes = Counter(clusters)
    if len(sizes) < FEW:
        return None
    size = round(len(differences) / len(sizes))
    numbers = {name: number for number, name in enumerate(sizes)}
    groups = np.array([numbers[name] for name in clusters] + [len(sizes)] * size + [len(sizes) + 1] * size)
    values = np.concatenate([differences, [span] * size, [-span] * size])
    fit = OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    low, high = fit.conf_int(ALPHA)[0]
    return Paired(
        n=len(differences), clusters=len(sizes), difference=float(differences.mean()),
        low=max(-span, float(low)), high=min(span, float(high)), p=float(fit.pvalues[0]), test=CLUSTERED,
        changed=0, deviation=float(fit.bse[0]) * math.sqrt(len(sizes)),
    )  # fmt: skip


def _detectable_by_mcnemar(n: int, changed: float, level: float) -> float:
    """Return the smallest difference of shares that McNemar's test finds, if this share of items changes, or more."""
    from scipy import optimize

    if _power(n, 1, 1, level) < POWER:
        return 1.0  # even if all items changed in one direction
    changed = max(changed, 2 / (n + 2))

    def missing(difference: float) -> float:
        return _power(n, max(changed, difference), difference, level) - POWER

    return float(optimize.brentq(missing, 0, 1, xtol=1e-5))


def _power(n: int, changed: float, difference: float, level: float) -> float:
    """Return the power of McNemar's exact test if a share ``changed`` of ``n`` items changes.

    The number of changed items is binomial, and among them the number in one direction (SciPy).
    """
    import numpy as np
    from scipy import stats

    counts = np.arange(*stats.binom.interval(1 - 1e-9, n, changed) + np.array([0, 1])).astype(int)
    weights = stats.binom.pmf(counts, n, changed)
    share = (1 + min(1, difference / changed)) / 2
    # The largest number of the rarer direction that rejects: its two-sided p-value is at most the level.
    most = stats.binom.ppf(level / 2, counts, 0.5)
    most = np.where(2 * stats.binom.cdf(most, counts, 0.5) <= level, most, most - 1)
    rejected = stats.binom.cdf(most, counts, 1 - share) + stats.binom.cdf(most, counts, share)
    return float((weights * np.where(most < 0, 0, rejected)).sum())
