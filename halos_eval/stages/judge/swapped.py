"""Ask alpaca_eval's judge about every pair in both orders, and count the contradictions.

A judge that prefers the first output whatever it says would otherwise give half of its preferences by position.
Arena-Hard and MT-Bench ask both orders as well: arXiv 2306.05685, section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ORDERS = "preference_by_order"
"""Key of an annotation: the preference in the order that alpaca_eval chose, and in the other one. None: unreadable."""
FLIP_RATE = "flip_rate"
"""Metric: percentage of the pairs judged in both orders in which the judge contradicts itself."""
FLIPS, BOTH_ORDERS = "flips", "judged_in_both_orders"
"""Details of the record: the two numbers of which the flip rate is made."""
DRAW = 1.5


def swapping(judge: Any) -> Any:
    """Return a class of alpaca_eval's ``judge`` of pairs that asks about each pair in both orders, in one go.

    alpaca_eval chooses the order by the instruction alone, or does not change it. So with the outputs exchanged, it
    shows the same pair in the other order. An answer may be unreadable in one order: then the pair is unreadable.
    """
    import pandas as pd

    class Swapping(judge):  # type: ignore[misc]
        def __call__(self, to_annotate: Any, *args: Any, **options: Any) -> list[dict[str, Any]]:
            pairs = pd.DataFrame(to_annotate)
            exchanged = pairs.rename(columns={"output_1": "output_2", "output_2": "output_1"})
            both = super().__call__(pd.concat([pairs, exchanged], ignore_index=True), *args, **options)
            return [joined(one, other) for one, other in zip(both[: len(pairs)], both[len(pairs) :], strict=True)]

    return Swapping


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the annotation of a pair in both orders; the second one has the outputs exchanged."""
    first, second = number(one["preference"]), number(other["preference"])
    turned = None if second is None else 2 * DRAW - second
    mean = None if first is None or turned is None else (first + turned) / 2
    return one | {"preference": mean, ORDERS: [first, turned]}


def number(value: Any) -> float | None:
    """Return a preference; None for the NaN with which alpaca_eval marks an answer that could not be read."""
    return float(value) if value is not None and value == value else None  # noqa: PLR0124 (NaN)


def read_answers(annotations: Iterable[dict[str, Any]]) -> int:
    """Return the number of readable answers, in whatever order."""
    return sum(value is not None for one in annotations for value in one[ORDERS])


def flips(annotations: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Return in how many pairs the two orders contradict each other, and how many pairs have both answers.

    Equal outputs, about which nobody is asked, do not count, and neither do pairs whose preference does not count. A
    draw in one order contradicts nothing.
    """
    asked = [
        one[ORDERS]
        for one in annotations
        if one["output_1"] != one["output_2"] and one["preference"] is not None and None not in one[ORDERS]
    ]
    return sum((first - DRAW) * (second - DRAW) < 0 for first, second in asked), len(asked)
