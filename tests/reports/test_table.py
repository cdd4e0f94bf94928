"""The summary table: HALOs' columns, no unmeasured number, and the reason for each missing one."""

from __future__ import annotations

import math

import pytest

from halos_eval.errors import BadInput
from halos_eval.planning.plan import Plan
from halos_eval.reports import results
from halos_eval.reports.results import Cell, Row, cells_of
from halos_eval.reports.table import document, read_rows
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import CheckpointRef, Coverage, Score, write_model
from tests.doubles import make_job, make_record, write_failure
from tests.reports.pandas_table import frame

NAN = pytest.approx(math.nan, nan_ok=True)
ALPACA = {"alpacaeval_lcwr", "alpacaeval_wr", "alpacaeval_discrete_wr"}


def score(task, metric="acc", value=0.5, **more):
    return Score(task=task, metric=metric, value=value, **more)


WIN_RATES = (
    score("alpaca_eval", "length_controlled_winrate", 24.5, higher_is_better=True),
    score("alpaca_eval", "win_rate", 26.5, stderr=1.25, higher_is_better=True),
    score("alpaca_eval", "discrete_win_rate", 26.0, higher_is_better=True),
)
GSM8K = (
    score("gsm8k", "exact_match", 0.25, filter="strict-match", stderr=0.01),
    score("gsm8k", "exact_match", 0.75, filter="flexible-extract", stderr=0.02),
)


@pytest.fixture
def job(tmp_path):
    """A planned job; its record, with ``scores``, unless that is None."""

    def job(title, scores=None, metric=None, **parts):
        stage = title if title in {"sample", "judge"} else "harness"
        task = title if stage == "harness" else None
        record = f"{tmp_path}/runs/one/{title}/record.json"
        if scores is not None:
            write_model(record, make_record(stage, task, scores=scores, **parts))
        return make_job(stage, task, record, metric=metric)

    return job


def row_of_plan(plan):
    """The cells of the CSV."""
    return document(results.row_of_plan(plan))


def plan(*jobs, name="one", left_out=(), unavailable=None):
    reference = CheckpointRef(name=name, location="/one", digest="d")
    return Plan(
        version=2, suite="halos", checkpoint=reference, jobs=jobs, left_out=left_out, unavailable=unavailable or {}
    )


def test_an_unavailable_task_is_named_and_leaves_no_average(job):
    row = row_of_plan(plan(job("arc", [score("arc", value=0.4)]), unavailable={"gpqa": "it is gated"}))
    assert row == {"model_name": "one", "arc-acc": 0.4, "status": "gpqa: unavailable: it is gated"}


def test_unavailable_prompts_leave_alpaca_evals_cells_empty_and_the_tasks_average(job):
    row = row_of_plan(plan(job("arc", [score("arc", value=0.4)]), unavailable={"alpaca_eval": "no such file"}))
    assert row["status"] == "alpaca_eval: unavailable: no such file"
    assert row["avg"] == 0.4
    assert all(math.isnan(row[column]) for column in ALPACA)


@pytest.mark.parametrize(
    ("absent", "status"),
    [({"unavailable": {"alpaca_eval": "no such file"}}, "unavailable"), ({"left_out": ("alpaca_eval",)}, "missing")],
    ids=["unavailable", "left out"],
)
def test_alpaca_eval_without_a_job_is_two_stages(absent, status):
    assert results.row_of_plan(plan(**absent)).stages == {"sample": status, "judge": status}


def test_everything_is_there(job):
    jobs = [job("sample", ()), job("judge", WIN_RATES), job("arc", [score("arc", value=0.4)]), job("gsm8k", GSM8K)]
    assert row_of_plan(plan(*jobs)) == {
        "model_name": "one",
        "alpacaeval_lcwr": 24.5,
        "alpacaeval_wr": 26.5,
        "alpacaeval_wr_stderr": 1.25,
        "alpacaeval_discrete_wr": 26.0,
        "arc-acc": 0.4,
        "gsm8k-exact_match": 0.75,
        "gsm8k-exact_match_stderr": 0.02,
        "gsm8k-exact_match,strict-match": 0.25,
        "gsm8k-exact_match,strict-match_stderr": 0.01,
        "avg": 0.575,
        "status": "complete",
    }


def test_what_failed_has_its_reason_and_there_is_no_average(job):
    missing = job("gsm8k")
    write_failure(layout.failure_beside(missing.record), "no token", "DataUnavailable")
    row = row_of_plan(plan(job("arc", [score("arc")]), missing))
    assert row == {"model_name": "one", "arc-acc": 0.5, "status": "gsm8k: DataUnavailable: no token"}


def test_what_was_not_run_has_no_number(job):
    row = row_of_plan(plan(job("sample"), job("judge"), job("arc")))
    reason = "no result (not run, or killed)"
    assert row.pop("status") == f"sample: {reason}; judge: {reason}; arc: {reason}"
    assert row.pop("model_name") == "one"
    assert row.keys() == ALPACA
    assert all(math.isnan(value) for value in row.values())


def test_a_win_rate_that_is_missing_is_an_empty_cell_with_a_reason(job):
    reason = {"alpaca_eval-length_controlled_winrate": "other prompts", "alpaca_eval-n_total": "2 of 805 not read"}
    row = row_of_plan(plan(job("judge", WIN_RATES[1:], missing=reason)))
    assert math.isnan(row["alpacaeval_lcwr"])
    assert row["alpacaeval_wr"] == 26.5
    assert row["status"] == "alpacaeval_lcwr: other prompts"


def test_a_suite_without_alpaca_eval_has_no_columns_for_it(job):
    assert not ALPACA & row_of_plan(plan(job("arc", [score("arc")]))).keys()


def test_what_was_never_asked_for_is_told(job):
    row = row_of_plan(plan(job("arc", [score("arc")]), left_out=("alpaca_eval", "gsm8k")))
    assert row == {
        "model_name": "one",
        "arc-acc": 0.5,
        "status": "alpaca_eval: not requested; gsm8k: not requested",
    }


def test_a_metric_that_could_not_be_computed_is_told(job):
    row = row_of_plan(plan(job("ifeval", [score("ifeval")], missing={"ifeval-f1,none": "lm_eval returned nan"})))
    assert row["status"] == "ifeval-f1,none: lm_eval returned nan"


@pytest.mark.parametrize(
    ("metric", "average"),
    [(None, 0.75), ("exact_match", 0.75), ("exact_match,strict-match", 0.25), ("exact_match,none", None), ("f1", None)],
)
def test_the_suite_says_which_metric_counts(job, metric, average):
    assert row_of_plan(plan(job("gsm8k", GSM8K, metric))).get("avg") == average


def test_a_metric_that_is_better_when_lower_does_not_count(job):
    scores = [score("t", "brier", 0.9, higher_is_better=False), score("t", "f1", 0.3, higher_is_better=True)]
    row = row_of_plan(plan(job("t", scores)))
    assert (row["avg"], row["t-brier"]) == (0.3, 0.9)


@pytest.mark.parametrize("metric", ["ppl", "ppl,none"])
def test_a_suite_may_choose_a_metric_that_is_better_when_lower(job, metric):
    """A comparison needs the choice. The average leaves the task out, and nothing is missing."""
    text = [score("text", "ppl", 12.5, higher_is_better=False), score("text", "acc", 0.9, higher_is_better=True)]
    row = row_of_plan(plan(job("text", text, metric), job("arc", [score("arc", value=0.4)])))
    assert (row["text-ppl"], row["avg"], row["status"]) == (12.5, 0.4, "complete")
    alone = row_of_plan(plan(job("text", text, metric)))
    assert ("avg" in alone, alone["status"]) == (False, "complete")


def test_a_chosen_metric_that_is_better_when_lower_may_still_be_missing(job):
    tag = [score("a", "ppl", 12.5, higher_is_better=False), score("b", "acc", 0.9)]
    lost = {"b-ppl,none": "lm_eval returned nan"}
    for parts in ({}, {"missing": lost}):
        row = row_of_plan(plan(job("tag", tag, "ppl", **parts), job("arc", [score("arc", value=0.4)])))
        assert "avg" not in row
        assert row["status"].endswith("avg: tag has no ppl, which the average needs")


def test_a_groups_parts_are_neither_columns_nor_in_the_average(job):
    scores = [score("mmlu", value=0.6), score("mmlu_stem", value=0.1, group="mmlu")]
    row = row_of_plan(plan(job("mmlu", scores)))
    assert row == {"model_name": "one", "mmlu-acc": 0.6, "avg": 0.6, "status": "complete"}


def test_a_tags_tasks_are_averaged_first(job):
    arc = [score("arc_easy", value=0.6), score("arc_easy", "acc_norm", 0), score("arc_challenge", value=0.4)]
    assert row_of_plan(plan(job("arc", arc), job("t", [score("t", value=0.1)])))["avg"] == 0.3


def test_the_average_is_rounded_as_halos_does(job):
    jobs = [job(name, [score(name, value=value)]) for name, value in (("a", 1), ("b", 0), ("c", 0))]
    assert row_of_plan(plan(*jobs))["avg"] == 0.3333


def test_a_score_of_zero_is_a_score(job):
    row = row_of_plan(plan(job("a", [score("a", value=0, stderr=0)])))
    assert (row["a-acc"], row["avg"]) == (0, 0)
    # Its error is not 0: of one document, 0 to 79 % may be right.
    assert "a-acc_stderr" not in row
    assert (row["a-acc_low"], row["a-acc_high"]) == (0, pytest.approx(0.7935, abs=1e-4))


def test_columns_do_not_depend_on_the_order_of_scores():
    assert cells_of(reversed(GSM8K)) == cells_of(GSM8K)


def test_an_alpaca_eval_metric_without_a_column_is_left_out():
    assert cells_of([score("alpaca_eval", "other")]) == {}


def test_a_plan_carries_the_suites_threshold(job):
    details = {"cut_at_max_tokens": 3, "empty": 1}
    coverage = Coverage(attempted=10, scored=10)
    jobs = plan(job("sample", (), details=details, coverage=coverage), job("arc", [score("arc")]))
    assert row_of_plan(jobs.model_copy(update={"warn_above": 0.2})) == {
        "model_name": "one",
        "alpacaeval_n_cut": 3,
        "alpacaeval_n_empty": 1,
        "arc-acc": 0.5,
        "avg": 0.5,
        "status": "complete; warning: alpacaeval: 3 of 10 answers were cut at max_tokens",
    }


def test_two_tasks_with_one_column_have_no_average(job):
    tag = [score("arc_easy", value=0.6), score("arc_challenge", value=0.4)]
    row = row_of_plan(plan(job("arc", tag), job("arc_easy", [score("arc_easy", value=0.6)])))
    assert (row["arc_easy-acc"], "avg" in row) == (0.6, False)
    assert row["status"] == "avg: arc and arc_easy both have arc_easy-acc (that of arc is shown)"


def test_a_tag_has_no_number_if_one_of_its_tasks_has_none(job):
    arc = [score("arc_easy", "acc_norm", 0.6), score("arc_challenge", "acc", 0.4), score("arc_easy", "acc", 0.5)]
    lost = {"arc_challenge-acc_norm,none": "lm_eval returned nan"}
    row = row_of_plan(plan(job("arc", arc, "acc_norm", missing=lost)))
    assert "avg" not in row
    assert row["status"] == (
        "arc_challenge-acc_norm,none: lm_eval returned nan; avg: arc has no acc_norm, which the average needs"
    )
    assert row_of_plan(plan(job("arc", arc, "acc", missing=lost)))["avg"] == 0.45


def test_the_order_of_columns_and_rows():
    rows = [
        Row("a", {"a-acc": Cell(3.0, 0.5)}, missing=(results.Missing("z", "no result; none at all"),)),
        Row("b", {"z-acc": Cell(1.0), "alpacaeval_wr": Cell(2.0), "alpacaeval_lcwr": None}, "gpt", average=1.0),
    ]
    table = frame(rows)
    assert table.to_dict("list") == {
        "model_name": ["a", "b"],
        "alpacaeval_lcwr": [NAN, NAN],
        "alpacaeval_wr": [NAN, 2.0],
        "alpacaeval_judge": [NAN, "gpt"],
        "a-acc": [3.0, NAN],
        "a-acc_stderr": [0.5, NAN],
        "z-acc": [NAN, 1.0],
        "avg": [NAN, 1.0],
        "status": ["z: no result, none at all", "complete"],
    }


def test_a_suites_table(job, tmp_path):
    for name in ("two", "one"):
        url = layout.plan_url(str(tmp_path), "halos", name)
        write_model(url, plan(job("arc", [score("arc")]), name=name))
    write_model(layout.plan_url(str(tmp_path), "quick", "three"), plan(job("arc"), name="three"))
    rows = read_rows(str(tmp_path), "halos")
    assert [(row.checkpoint, row.complete) for row in rows] == [("one", True), ("two", True)]


def test_all_records_of_a_store(job, tmp_path):
    job("arc", [score("arc")])
    job("sample", ())
    rows = read_rows(f"file://{tmp_path}")
    assert [document(row) for row in rows] == [{"model_name": "one", "arc-acc": 0.5, "avg": 0.5, "status": "complete"}]


@pytest.mark.parametrize(("suite", "words"), [("halos", "no plan of halos"), (None, "no record")])
def test_nothing_is_there(tmp_path, suite, words):
    with pytest.raises(BadInput, match=words):
        read_rows(str(tmp_path), suite)


def test_a_damaged_record_costs_the_average_of_its_own_row(job, tmp_path):
    job("arc", [score("arc")])
    filesystem.write_bytes(job("gsm8k", GSM8K).record, b"{")
    (row,) = read_rows(f"file://{tmp_path}")
    found = document(row)
    assert (found["arc-acc"], "avg" in found) == (0.5, False)
    assert "is not a valid record of this version" in found["status"]
