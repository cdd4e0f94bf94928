"""Standard errors and intervals that are true where the tools' own are not: at 0 and 100 %, and for the average."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)
"""Standard errors on each side of an interval of 95 %."""
# Means of values from 0 to 1 per document. A BLEU or a perplexity of 0 or 1 is no share, and has no such interval.
_SHARE = re.compile(r"acc|acc_norm|acc_bytes|acc_mutual_info|exact_match|em|pass[@_].*|\w+_level_(strict|loose)_acc")
PERCENT = frozenset({"win_rate", "length_controlled_winrate", "discrete_win_rate"})
"""alpaca_eval's metrics, which are shares in percent."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's interval of 95 % for a share (0 to 1) of ``n`` independent items.

    The same as scipy's ``binomtest(...).proportion_ci(method="wilson")``, which Airflow's environment does not have. It
    is also valid for values from 0 to 1 that are all 0 or all 1, because none of these varies more than a yes or no.
    """
    weight = Z * Z / n
    center = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return max(0.0, center - half), min(1.0, center + half)


def at_bound(value: float, stderr: float | None) -> bool:
    """Return whether a standard error is 0 only because the score is at its bound: all answers are wrong or all right.

    Bounds are 0, 1 for a fraction and 100 for a win rate. The error is then unknown, however few answers there are.
    """
    return stderr == 0 and value in {0, 1, 100}


def bound_interval(metric: str, value: float, stderr: float | None, n: int | None) -> tuple[float, float] | None:
    """Return the interval of 95 % of a score at its bound, in the score's unit.

    None for other scores, whose standard error is valid, and if the metric is no share or ``n`` items are unknown.
    """
    unit = 100 if metric in PERCENT else 1
    if not n or not at_bound(value, stderr) or value not in {0, unit}:
        return None
    if unit == 1 and not _SHARE.fullmatch(metric):
        return None
    low, high = wilson(value / unit, n)
    return low * unit, high * unit


def error_of_mean(errors: Sequence[float | None]) -> float | None:
    """Return the standard error of the mean of independent scores; None unless every score has one."""
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(known) if known and len(known) == len(errors) else None
