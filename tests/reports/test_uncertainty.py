"""Errors and intervals: compared with scipy, and at the bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from halos_eval.reports.results import Cell, Row, average, cells_of_record
from halos_eval.reports.table import document
from halos_eval.reports.uncertainty import bound_interval, error_of_mean, wilson
from halos_eval.storage.records import Coverage, Score
from tests.doubles import make_record


@given(n=st.integers(1, 5000), data=st.data())
def test_wilsons_interval_is_scipys(n, data):
    right = data.draw(st.integers(0, n))
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "value", "stderr", "n", "interval"),
    [
        ("acc", 1.0, 0.0, 16, (0.8064, 1)),
        ("acc", 0.0, 0.0, 16, (0, 0.1936)),
        ("pass@1", 0.0, 0.0, 164, (0, 0.0229)),
        ("win_rate", 100.0, 0.0, 805, (99.5251, 100)),
        ("win_rate", 1.0, 0.0, 805, None),  # one percent is no bound
        ("acc", 1.0, 0.0, None, None),
        ("acc", 0.5, 0.0, 16, None),
        ("acc", 1.0, None, 16, None),
        ("bleu", 0.0, 0.0, 16, None),
        ("word_perplexity", 1.0, 0.0, 16, None),
    ],
)
def test_the_interval_of_a_score_at_its_bound(metric, value, stderr, n, interval):
    assert bound_interval(metric, value, stderr, n) == (interval and pytest.approx(interval, abs=1e-4))


def test_the_error_of_a_mean():
    assert error_of_mean([0.03, 0.04]) == pytest.approx(0.025)
    assert error_of_mean([0.03]) == 0.03
    assert error_of_mean([0.03, None]) is None
    assert error_of_mean([]) is None


def record(task, *scores, scored=16):
    return make_record(task=task, scores=scores, coverage=Coverage(attempted=scored, scored=scored))


def test_the_average_has_an_error_only_if_every_task_has_one():
    a = record("a", Score(task="a", metric="acc", value=0.5, stderr=0.03))
    b = record("b", Score(task="b", metric="acc", value=0.7, stderr=0.04))
    unknown = record("c", Score(task="c", metric="acc", value=0.6))
    right = record("d", Score(task="d", metric="acc", value=1.0, stderr=0.0))
    assert average([(a, None), (b, None)]) == Cell(0.6, pytest.approx(0.025))
    assert average([(a, None), (b, None), (unknown, None)]) == Cell(0.6, None)
    # 16 of 16 has no error that could be added, and 0 would be too small.
    assert average([(a, None), (right, None)]) == Cell(0.75, None)


def test_the_tasks_of_a_tag_are_one_number_with_one_error():
    tag = record(
        "arc",
        Score(task="arc_easy", metric="acc", value=0.6, stderr=0.03),
        Score(task="arc_challenge", metric="acc", value=0.4, stderr=0.04),
    )
    other = record("b", Score(task="b", metric="acc", value=0.7, stderr=0.06))
    expected = math.sqrt(0.025**2 + 0.06**2) / 2
    assert average([(tag, None), (other, None)]) == Cell(0.6, pytest.approx(expected))


def test_the_items_of_a_score_are_the_records_or_its_clusters():
    full = Score(task="a", metric="acc", value=1.0, stderr=0.0)
    assert cells_of_record(record("a", full))["a-acc"].interval == pytest.approx(wilson(1, 16))
    few = full.model_copy(update={"clusters": 4})
    assert cells_of_record(record("a", few))["a-acc"].interval == pytest.approx(wilson(1, 4))
    # A tag's record counts the documents of all its tasks.
    tag = record("t", full, full.model_copy(update={"task": "b"}))
    assert cells_of_record(tag)["a-acc"].interval is None


def test_the_csv_has_the_interval_in_place_of_the_error():
    row = document(Row("m", {"a-acc": Cell(1.0, 0.0, (0.8, 1.0)), "b-acc": Cell(0.5, 0.1)}, average_stderr=0.1))
    assert row == {
        "model_name": "m",
        "a-acc": 1.0,
        "a-acc_low": 0.8,
        "a-acc_high": 1.0,
        "b-acc": 0.5,
        "b-acc_stderr": 0.1,
        "avg_stderr": 0.1,
        "status": "complete",
    }


def test_another_filters_score_does_not_take_the_column_of_a_missing_one():
    strict = Score(task="gsm8k", metric="exact_match", filter="strict-match", value=0.25)
    lost = make_record(task="gsm8k", scores=[strict], missing={"gsm8k-exact_match,flexible-extract": "nan"})
    assert cells_of_record(lost).keys() == {"gsm8k-exact_match,strict-match"}


def test_a_placeholder_in_an_older_record_is_no_score():
    bypass = record("open", Score(task="open", metric="bypass", value=999))
    assert cells_of_record(bypass) == {}
    assert average([(bypass, None)]) is None
    ruler = record("niah", Score(task="niah", metric="131072", value=-1), Score(task="niah", metric="4096", value=0.5))
    assert cells_of_record(ruler) == {"niah-4096": Cell(0.5)}
    assert average([(ruler, None)]) == Cell(0.5)
