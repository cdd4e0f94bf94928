"""What one judge would say of checkpoints that only the other has judged: a straight line with prediction intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel

from halos_eval.analysis.estimate import CONFIDENCE, Estimate
from halos_eval.config.settings import FROZEN

LEAST = 5
"""Common checkpoints without which there is no line: with fewer, an interval is wider than the scale."""


class Line(BaseModel):
    """A line by ordinary least squares."""

    model_config = FROZEN

    n: int
    """Checkpoints that it is made of."""
    slope: float
    """Points of the new score for each point of the known one."""
    intercept: float
    """New score where the known one is 0."""
    residual: float
    """Standard deviation around the line, in the scores' unit."""
    mean: float
    """Mean of the known scores."""
    spread: float
    """Sum of squared deviations from that mean."""
    low: float
    """Lowest known score."""
    high: float
    """Highest known score."""

    def at(self, known: float) -> Estimate:
        """Return the predicted score, with the interval for one new checkpoint.

        Known scores have errors of their own. For a new checkpoint from the same population with errors of the same
        size the prediction is still unbiased, and its interval includes them. The slope is not that of true scores.
        """
        from scipy import stats

        value = self.intercept + self.slope * known
        error = self.residual * math.sqrt(1 + 1 / self.n + (known - self.mean) ** 2 / self.spread)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 2)) * error
        return Estimate(value=value, low=value - half, high=value + half)

    def within(self, known: float) -> bool:
        """Return whether a score is in the range of those that the line is made of."""
        return self.low <= known <= self.high


def fit(old: Sequence[float], new: Sequence[float]) -> Line | str:
    """Return the line that predicts a score in ``new`` by one in ``old``, or why there is none."""
    from scipy import stats

    if len(old) < LEAST:
        return f"{len(old)} common checkpoints; a prediction needs {LEAST}"
    if len(set(old)) < 2:
        return "all known scores are equal"
    found = stats.linregress(old, new)
    errors = [y - (found.intercept + found.slope * x) for x, y in zip(old, new, strict=True)]
    mean = sum(old) / len(old)
    return Line(
        n=len(old),
        slope=found.slope,
        intercept=found.intercept,
        residual=math.sqrt(sum(error**2 for error in errors) / (len(old) - 2)),
        mean=mean,
        spread=sum((x - mean) ** 2 for x in old),
        low=min(old),
        high=max(old),
    )
