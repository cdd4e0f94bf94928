"""Pairs of items: equal answers never differ, and exchanged checkpoints have the mirrored difference."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from halos_eval.errors import EvaluationFailed
from halos_eval.reports.paired_items import Average, Measured, Value, averages_of
from halos_eval.reports.pairing import pair_of


@pytest.fixture(autouse=True, scope="module")
def fewer_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("halos_eval.analysis.paired.RESAMPLES", 19)
        yield


def measured(values, tag=True):
    """The result with these values by id: that of a tag, or of a group whose score is the mean of all documents."""
    items = {key: Value(value, key, key, "", "", "") for key, value in values.items()}
    tasks = {}
    for key, value in values.items():
        tasks.setdefault(key.partition("/")[0], []).append(value)
    means = [math.fsum(own) / len(own) for own in tasks.values()]
    averages = averages_of(items, means if tag else [math.fsum(values.values()) / len(values)])
    return Measured("acc", items, averages, None, 1)


def documents(draw, tasks, value):
    """Values of each document, without those that one side does not have; of each task some stay."""
    size = st.integers(2, 9)
    keys = [f"{task}/{number}" for task in range(tasks) for number in range(draw(size))]
    kept = [key for key in keys if key.endswith("/0") or draw(st.booleans())]
    return {key: draw(value) for key in kept}


@st.composite
def results(draw, equal=False):
    """Two results of the same tag of one to three tasks, each without some of the documents."""
    value = draw(st.sampled_from([st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=16), st.floats(-9, 90, width=16)]))
    tasks = draw(st.integers(1, 3))
    a = documents(draw, tasks, value)
    b = documents(draw, tasks, value)
    if equal:
        b |= {key: a[key] for key in a.keys() & b.keys()}
    return a, b


def differing(a, b):
    """Whether the range of the metric is known: shares, or different values."""
    values = {one.value for side in (a, b) for one in side.items.values()}
    return len(values) > 1 or all(0 <= value <= 1 for value in values)


@settings(max_examples=40)
@given(results(equal=True), st.booleans())
def test_equal_answers_give_no_difference(pair, tag):
    a, b = (measured(values, tag) for values in pair)
    assume(a.averages & b.averages and differing(a, b))
    found = pair_of(a, b)
    difference = found.difference()
    assert found.means[0] == found.means[1]
    assert (difference.difference, difference.p) == (0, 1)
    assert difference.low <= 0 <= difference.high


@settings(max_examples=40)
@given(results(), st.booleans())
def test_exchanged_checkpoints_have_the_mirrored_difference(pair, tag):
    a, b = (measured(values, tag) for values in pair)
    assume(a.averages & b.averages and differing(a, b))
    one, other = pair_of(a, b), pair_of(b, a)
    assert one.means == other.means[::-1]
    ours, theirs = one.difference(), other.difference()
    assert (ours.difference, ours.low, ours.high) == pytest.approx((-theirs.difference, -theirs.high, -theirs.low))
    assert one.span == other.span
    assert ours.low <= ours.difference + 1e-9
    assert ours.difference <= ours.high + 1e-9
    assert (ours.p, ours.test, ours.n) == (pytest.approx(theirs.p), theirs.test, theirs.n)


@given(results().filter(lambda pair: differing(*map(measured, pair))))
def test_the_score_of_a_tag_is_the_mean_of_its_tasks_over_the_common_documents(pair):
    found = pair_of(*map(measured, pair))
    for side, mean in zip((found.a, found.b), found.means, strict=True):
        tasks = {}
        for key, one in side.items():
            tasks.setdefault(key.partition("/")[0], []).append(one.value)
        assert mean == pytest.approx(sum(sum(own) / len(own) for own in tasks.values()) / len(tasks))
    assert sum(found.weights.values()) == pytest.approx(len(found.weights))


def test_how_a_score_is_averaged():
    values = measured({"one/0": 1.0, "one/1": 1.0, "two/0": 0.0}).items
    assert averages_of(values, [2 / 3]) == {Average.DOCUMENTS}
    assert averages_of(values, [0.5]) == averages_of(values, [1.0, 0.0]) == {Average.TASKS}
    assert averages_of(values, [0.6]) == frozenset()
    even = measured({"one/0": 1.0, "two/0": 0.0}).items
    assert averages_of(even, [0.5]) == {Average.DOCUMENTS, Average.TASKS}
    assert averages_of(even, [1.0, 0.0]) == {Average.TASKS}


def test_a_mean_of_documents_is_not_compared_with_a_mean_of_tasks():
    values = {"one/0": 1.0, "one/1": 1.0, "two/0": 0.0}
    with pytest.raises(EvaluationFailed, match="one score is the mean of all documents, the other the mean of its"):
        pair_of(measured(values), measured(values, tag=False))


def test_the_order_of_the_items_does_not_depend_on_the_sides():
    values = {f"{number}": number / 11 for number in range(11)}
    forward, backward = measured(values), measured(dict(reversed(values.items())))
    one, other = pair_of(forward, backward), pair_of(backward, forward)
    assert list(one.a) == list(one.b) == list(other.a) == list(values)
