"""Pairs that a judge sees in both orders: the mean preference, and the contradictions."""

from __future__ import annotations

import math

import pytest

from halos_eval.stages.judge.swapped import flips, joined, read_answers


def pair(first, second, output="b"):
    """What a judge said of a pair; ``second`` with the outputs exchanged, as alpaca_eval returns it."""
    return joined(
        {"output_1": "a", "output_2": output, "preference": first},
        {"output_1": output, "output_2": "a", "preference": second},
    )


@pytest.mark.parametrize(
    ("first", "second", "mean", "orders"),
    [
        (2, 1, 2, [2, 2]),  # the model's output is better in both orders
        (1, 2, 1, [1, 1]),
        (2, 2, 1.5, [2, 1]),  # what is shown second is better
        (1.8, 1.4, 1.7, [1.8, 1.6]),
        (1.5, 1.5, 1.5, [1.5, 1.5]),
        (math.nan, 1, None, [None, 2]),
        (2, None, None, [2, None]),
    ],
)
def test_the_preference_is_the_mean_of_both_orders(first, second, mean, orders):
    found = pair(first, second)
    assert found["preference"] == (None if mean is None else pytest.approx(mean))
    assert found["preference_by_order"] == [None if one is None else pytest.approx(one) for one in orders]
    assert (found["output_1"], found["output_2"]) == ("a", "b")


def test_a_flip_is_a_contradiction():
    pairs = [
        pair(2, 1),  # agree
        pair(2, 2),  # flip
        pair(1.4, 1.4),  # flip, of probabilities
        pair(1.5, 1),  # a draw contradicts nothing
        pair(None, 1),  # unreadable
        pair(1.5, 1.5, output="a"),  # equal outputs, not asked
    ]
    assert flips(pairs) == (2, 4)
    assert flips([]) == (0, 0)
    assert read_answers(pairs) == 11


def test_a_judgement_that_does_not_count_is_no_flip():
    """Of an output that was cut, the stage removes the preference, not the answers in both orders."""
    assert flips([pair(2, 2) | {"preference": None}, pair(2, 1)]) == (0, 1)
