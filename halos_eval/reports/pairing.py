"""The items that two results have in common, with one weight for both scores of an item.

The weights come from the common items alone. If each side had weights of its own, a document that only one side has
would change the other documents' share on that side, so equal answers would give a difference.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from halos_eval.analysis.paired import Paired, paired
from halos_eval.errors import EvaluationFailed
from halos_eval.reports.paired_items import Average, Measured, Value, task_of


class Pair(NamedTuple):
    """The common items of two results, A and B."""

    metric: str
    """Metric and, after a comma, its filter."""
    a: dict[str, Value]
    """A's items by id."""
    b: dict[str, Value]
    """B's items, with the same ids in the same order."""
    weights: dict[str, float]
    """Share of each item in the scores, 1 on average: a tag averages its tasks, however many documents they have."""
    only_one: int
    """Items that one of the results has and the other has not."""
    span: float
    """Largest possible difference of two values: 1 for shares, 100 for percent, otherwise the range of both sides."""
    sign: int
    """1 if a higher value is better, -1 if a lower one is."""
    draw: float | None
    """Value at which neither side of a judgement wins; None if the values are no judgements."""

    @property
    def means(self) -> tuple[float, float]:
        """The scores of A and B over these items, in the metric's unit."""
        a, b = (sum(one.value * self.weights[key] for key, one in of.items()) / len(of) for of in (self.a, self.b))
        return a, b

    def difference(self) -> Paired | None:
        """Return A minus B, positive if A is better; None if there are too few independent groups of items."""
        a, b = ([one.value * self.weights[key] * self.sign for key, one in of.items()] for of in (self.a, self.b))
        return paired(a, b, [one.cluster for one in self.a.values()], self.span)


def pair_of(a: Measured, b: Measured) -> Pair:
    """Return the items that two results have in common. Raise EvaluationFailed if their scores are not comparable."""
    if a.metric != b.metric:
        raise EvaluationFailed(f"metric {a.metric} and {b.metric}")
    # In an order that does not depend on the sides, because a permutation test depends on the order of its items.
    ids = sorted(a.items.keys() & b.items.keys(), key=lambda key: (len(key), key))
    if not ids or any(a.items[key].digest != b.items[key].digest for key in ids):
        raise EvaluationFailed("the documents or references differ")
    averages = a.averages & b.averages
    if not averages:
        raise EvaluationFailed("one score is the mean of all documents, the other the mean of its tasks")
    return Pair(
        metric=a.metric,
        a={key: a.items[key] for key in ids},
        b={key: b.items[key] for key in ids},
        weights=dict.fromkeys(ids, 1.0) if Average.DOCUMENTS in averages else _even(ids),
        only_one=len(a.items.keys() ^ b.items.keys()),
        span=a.span or _span(a, b),
        sign=a.sign,
        draw=a.draw,
    )


def _span(a: Measured, b: Measured) -> float:
    """Return the largest possible difference of two values, from those of both sides. Raise EvaluationFailed."""
    values = [one.value for side in (a, b) for one in side.items.values()]
    low, high = min(values), max(values)
    if low >= 0 and high <= 1:
        return 1.0
    if low == high:
        raise EvaluationFailed(f"all values are {low:g}, which says nothing of the range of {a.metric}")
    return high - low


def _even(ids: list[str]) -> dict[str, float]:
    """Return weights with which each task counts as much as the others."""
    sizes = Counter(map(task_of, ids))
    return {key: len(ids) / len(sizes) / sizes[task_of(key)] for key in ids}
