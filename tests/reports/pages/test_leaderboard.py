"""The leaderboard's data: ranks only where the intervals allow them, and a reason for each missing score."""

from __future__ import annotations

from halos_eval.reports.pages.leaderboard import content, ranks_of, reasons_of, score_columns
from halos_eval.reports.results import Cell, Missing, Row
from tests.reports.pages.material import row


def rows_of(*scores, series=1):
    return [
        Row(f"m{at}", average=value, average_stderr=error, series=series) for at, (value, error) in enumerate(scores)
    ]


def test_a_rank_is_given_where_the_intervals_are_apart():
    rows = rows_of((0.5, 0.01), (0.9, 0.01), (0.7, 0.01))
    assert ranks_of(rows, "avg") == [[3, 3], [1, 1], [2, 2]]


def test_checkpoints_whose_intervals_overlap_share_a_range():
    rows = rows_of((0.60, 0.01), (0.61, 0.01), (0.20, 0.01))
    assert ranks_of(rows, "avg") == [[1, 2], [1, 2], [3, 3]]


def test_there_is_no_rank_without_an_interval():
    assert ranks_of(rows_of((0.5, None), (0.6, 0.01)), "avg") == [None, [1, 1]]


def test_other_series_are_ranked_apart():
    rows = rows_of((0.5, 0.01)) + rows_of((0.9, 0.01), series=2)
    assert ranks_of(rows, "avg") == [[1, 1], [1, 1]]


def test_a_score_that_is_not_current_is_shown_without_a_rank():
    rows = [Row("old", {"alpacaeval_wr": Cell(90, 1, current=False)}), Row("new", {"alpacaeval_wr": Cell(10, 1)})]
    assert ranks_of(rows, "alpacaeval_wr") == [None, [1, 1]]
    assert [line[4] for line in content(rows)["rows"]] == [[90, 1], [10, 1]]


def test_a_score_at_its_bound_has_the_interval_of_the_table():
    rows = [Row("all", {"alpacaeval_wr": Cell(100, 0, (80.0, 100.0))}), Row("most", {"alpacaeval_wr": Cell(90, 2)})]
    assert ranks_of(rows, "alpacaeval_wr") == [[1, 2], [1, 2]]


def test_the_reason_of_a_missing_part_is_that_of_its_columns():
    missing = (Missing("gsm8k", "OutOfMemory"), Missing("judge@mini", "Busy"), Missing("avg", "gsm8k has no acc"))
    columns = ["avg", "gsm8k-exact_match", "gsm8k_cot-exact_match", "alpacaeval_wr", "alpacaeval_wr@mini"]
    assert reasons_of(Row("m", missing=missing), columns) == {
        "avg": "gsm8k has no acc",
        "gsm8k-exact_match": "OutOfMemory",
        "alpacaeval_wr@mini": "Busy",
    }


def test_outputs_that_are_missing_explain_all_columns_of_alpaca_eval():
    reasons = reasons_of(
        Row("m", missing=(Missing("sample", "Busy"),)), ["alpacaeval_wr", "alpacaeval_wr@mini", "t-acc"]
    )
    assert set(reasons) == {"alpacaeval_wr", "alpacaeval_wr@mini"}


def test_a_reason_that_many_rows_have_is_in_the_page_once():
    found = content([row(3), row(10)])
    assert sum("OutOfMemory" in reason for reason in found["reasons"]) == 2  # of the cells, and of the status


def test_the_columns_are_those_of_any_row():
    rows = [Row("a", {"t-acc": Cell(0.5)}), Row("b", {"u-acc": Cell(0.5), "alpacaeval_wr": Cell(50)}, average=0.5)]
    assert score_columns(rows) == ["avg", "alpacaeval_wr", "t-acc", "u-acc"]
