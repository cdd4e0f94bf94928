"""Agreement of two judges about the same pairs: Cohen's kappa, with an interval over prompts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from halos_eval.analysis.estimate import CONFIDENCE, Estimate
from halos_eval.config.settings import FROZEN

if TYPE_CHECKING:
    import numpy as np

DRAW = 1.5
RESAMPLES = 1999
SEED = 0
"""The same data always give the same interval."""
BATCH = 100  # resamples at a time: 805 prompts take 6 MB

Pair = tuple[float, float]
"""What the two judges prefer in one pair of outputs: from 1 = reference to 2 = model."""


class Agreement(BaseModel):
    """How often two judges name the same winner."""

    model_config = FROZEN

    pairs: int
    """Pairs of outputs that both have judged."""
    same: float
    """Share of the pairs with the same winner (0 to 1)."""
    kappa: Estimate | None
    """Cohen's kappa: 1 is full agreement, 0 is that of chance. None if both always name the same one winner."""


def agreement(prompts: Sequence[Sequence[Pair]]) -> Agreement | None:
    """Return the agreement about the winner: the reference, the model, or neither. None without a pair.

    ``prompts`` has the pairs of each prompt, one for each checkpoint. Answers to one prompt are not independent, so the
    interval is a bootstrap over prompts (BCa, SciPy).
    """
    import numpy as np

    tables = np.array([_table(pairs) for pairs in prompts if pairs])
    if not len(tables):
        return None
    whole = tables.sum(axis=0)
    value = float(kappas(whole))
    same = float(np.trace(whole) / whole.sum())
    kappa = None if np.isnan(value) else _bootstrapped(tables, value)
    return Agreement(pairs=int(whole.sum()), same=same, kappa=kappa)


def kappas(tables: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return Cohen's kappa of each table of counts in the last two axes; NaN where chance alone agrees fully.

    The same as scikit-learn's ``cohen_kappa_score``, for thousands of tables at once.
    """
    import numpy as np

    total = tables.sum(axis=(-2, -1))
    observed = np.trace(tables, axis1=-2, axis2=-1) / total
    expected = (tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def _table(pairs: Sequence[Pair]) -> np.ndarray[Any, Any]:
    """Return how often each combination of winners occurs: reference, neither, model."""
    import numpy as np

    table = np.zeros((3, 3))
    for one, other in pairs:
        table[_winner(one), _winner(other)] += 1
    return table


def _winner(preference: float) -> int:
    return int(preference >= DRAW) + int(preference > DRAW)


def _bootstrapped(tables: np.ndarray[Any, Any], value: float) -> Estimate:
    import numpy as np
    from scipy import stats

    def statistic(drawn: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
        return kappas(tables[drawn].sum(axis=axis - 2))  # two more axes than ``drawn`` has

    if len(tables) < 2:
        return Estimate(value=value)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # then there is no interval
        found = stats.bootstrap(
            (np.arange(len(tables)),), statistic, n_resamples=RESAMPLES, batch=BATCH, axis=-1, vectorized=True,
            confidence_level=CONFIDENCE, method="BCa", rng=np.random.default_rng(SEED),
        )  # fmt: skip
    low, high = map(float, found.confidence_interval)
    return Estimate(value=value) if np.isnan(low) or np.isnan(high) else Estimate(value=value, low=low, high=high)
