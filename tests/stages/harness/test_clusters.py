"""Errors of documents that share a passage."""

from __future__ import annotations

import math
import statistics

import pytest

from halos_eval.stages.harness.clusters import clustered_error
from halos_eval.stages.harness.results import scores_of


def samples(*values, passages=None, metric="acc"):
    """One document for each value, with its passage."""
    return [
        {"doc_id": number, "filter": "none", "doc": {"passage": passages[number]} if passages else {}, metric: value}
        for number, value in enumerate(values)
    ]


def mean_error(values):
    return statistics.stdev(values) / math.sqrt(len(values))


def test_independent_documents_have_lm_evals_error():
    assert clustered_error(samples(1, 0, 1), "acc", 2 / 3) is None
    assert clustered_error(samples(1, 0, 1, passages="abc"), "acc", 2 / 3) is None


def test_questions_on_one_passage_count_as_one_draw():
    """Each passage is asked twice with the same outcome, so there are only four results, not eight."""
    rows = samples(1, 1, 0, 0, 1, 1, 1, 1, passages="aabbccdd")
    error, clusters = clustered_error(rows, "acc", 0.75)
    assert (error, clusters) == (pytest.approx(mean_error([1, 0, 1, 1])), 4)
    assert error > 1.3 * mean_error([1, 1, 0, 0, 1, 1, 1, 1])


def test_passages_with_different_numbers_of_questions():
    # (a: 1 of 1, b: 1 of 3) by hand: residuals 1 - 0.5 and 1 - 1.5, each squared 0.25; sqrt(0.5 * 2 / 1) / 4
    rows = samples(1, 1, 0, 0, passages="abbb")
    assert clustered_error(rows, "acc", 0.5) == (pytest.approx(0.25), 2)


def test_the_instructions_of_a_prompt_are_a_cluster():
    rows = samples([True, True], [False, False], [True, True], metric="inst")
    assert clustered_error(rows, "inst", 2 / 3) == (pytest.approx(mean_error([1, 0, 1])), 3)


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        (samples(1, 0, passages="aa"), 0.5),  # one cluster says nothing of others
        (samples(1, 1, 0, passages="aab"), 0.9),  # not the mean of these values
        (samples("x", 1, 0, passages="aab"), 0.5),
        (samples(None, 1, 0, passages="aab"), 0.5),
        ([], 0.5),
    ],
)
def test_what_has_lm_evals_error(rows, value):
    assert clustered_error(rows, "acc", value) is None


def test_the_record_has_the_error_and_the_number_of_clusters():
    rows = samples(1, 1, 0, 0, passages="aabb")
    other = [{**row, "filter": "strict", "acc": 1} for row in rows]
    results = {
        "results": {"race": {"acc,none": 0.5, "acc_stderr,none": 0.2887, "acc,strict": 1.0, "acc_stderr,strict": 0.0}},
        "samples": {"race": rows + other},
    }
    none, strict = scores_of(results)[0]
    assert (none.stderr, none.clusters) == (pytest.approx(0.5), 2)
    assert (strict.stderr, strict.clusters) == (0, 2)
