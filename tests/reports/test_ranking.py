"""Scores that may stand beside those of other checkpoints: current ones, and in one column for all of them."""

from __future__ import annotations

import pytest

from halos_eval.reports.ranking import best, cell_of, ranked_by, score_of, scores_of
from halos_eval.reports.results import Cell, Row


def row(name, average=None, series=1, **win_rates):
    cells = {f"alpacaeval_{name}": Cell(value) for name, value in win_rates.items()}
    return Row(name, cells, average=average, series=series)


@pytest.mark.parametrize(
    ("rows", "column", "name"),
    [
        # A task of "broken" failed, so it has no average. Its win rate of 5 % is no average of 5.
        ([row("good", 0.9, lcwr=60), row("broken", lcwr=5)], "avg", "good"),
        ([row("broken", lcwr=95), row("good", 0.2, lcwr=60), row("less", 0.1, lcwr=70)], "avg", "good"),
        ([row("good", lcwr=40, wr=30), row("other", wr=90)], "alpacaeval_lcwr", "good"),
        ([row("less", wr=30), row("good", wr=90)], "alpacaeval_wr", "good"),
    ],
)
def test_all_checkpoints_are_compared_by_one_column(rows, column, name):
    assert (ranked_by(rows), best(rows).checkpoint) == (column, name)
    assert best(rows[::-1]).checkpoint == name


def test_the_best_is_one_of_the_newest_series_that_has_scores():
    rows = [row("old", 0.9), row("new", 0.2, series=2), row("failed", series=3)]
    assert best(rows).checkpoint == "new"


def test_without_scores_there_is_no_best():
    assert best([]) is None
    assert best([Row("failed", {"a-acc": Cell(0.5), "alpacaeval_wr": None})]) is None


def test_a_score_that_is_not_current_is_shown_but_never_ranked():
    old = Row("old", {"alpacaeval_wr": Cell(90.0, current=False), "a-acc": Cell(0.5)})
    new = row("new", wr=10)
    assert cell_of(old, "alpacaeval_wr").value == 90
    assert score_of(old, "alpacaeval_wr") is None
    assert scores_of(old) == {"a-acc": Cell(0.5)}
    assert best([old, new]).checkpoint == best([new, old]).checkpoint == "new"
    assert (ranked_by([old]), best([old])) == (None, None)


def test_the_average_is_one_of_the_scores():
    assert scores_of(row("one", 0.5, wr=10)) == {"alpacaeval_wr": Cell(10), "avg": Cell(0.5)}
