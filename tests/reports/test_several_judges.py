"""Several judges of one suite: each has its own columns, and no column ever has the scores of two."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from rich.console import Console
from scipy import stats

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.planning.costs import read_history
from halos_eval.planning.plan import make_plan, read_plan, save_plan
from halos_eval.planning.progress import overview
from halos_eval.reports.table import document, read_rows
from halos_eval.reports.terminal import Summary
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Coverage, Score, Usage
from tests.doubles import NOW, finish, make_checkpoint, make_provenance, write_failure
from tests.reports.pandas_table import frame

SUITE = "alpaca_eval: {{prompts: demo, reference: demo, judge: {}}}\ntasks: {{demo_cloze: {{}}}}"
SCORES = {"demo": 10, "gpt-4.1": 20, "gpt-4.1-mini": 30}
"""The win rate that each judge gives."""


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(name="one", location=str(make_checkpoint(tmp_path / "checkpoints" / "one")))


@pytest.fixture
def evaluate(root, checkpoint):
    """``evaluate(*parts)`` plans the suite ``own`` and finishes all jobs but those in ``without``."""
    runs = iter(range(1000))

    def evaluate(*parts, judge=None, without=(), unread=0):
        own = load_suite("own")
        plan = make_plan(own.keep(list(parts)), checkpoint, root, load_cluster(), judge=judge)
        save_plan(plan, own, root)
        for job in plan.jobs:
            if job.done or job.title in without:
                continue
            inputs = {"outputs_sha256": "abc", "judge_model": f"model of {job.judge}"} if job.judge else {}
            metric, value = ("win_rate", SCORES[job.judge]) if job.judge else ("acc", 0.5)
            finish(
                job,
                scores=() if job.stage == "sample" else (Score(task=job.part, metric=metric, value=value),),
                provenance=make_provenance(NOW + timedelta(minutes=next(runs)), **inputs),
                coverage=Coverage(attempted=10, scored=10 - (unread if job.judge else 0)),
                usage=Usage(load_seconds=0, work_seconds=0, prompt_tokens=9, price_usd=SCORES.get(job.judge)),
            )
        return plan

    return evaluate


@pytest.fixture
def row(root):
    """``row()`` returns the cells of the only row."""

    def row():
        (found,) = read_rows(root, "own")
        return document(found)

    return row


def test_each_judge_has_its_columns(suite, evaluate, row, root):
    suite(SUITE.format("[demo, gpt-4.1, gpt-4.1-mini]"))
    plan = evaluate(unread=1)
    assert [job.title for job in plan.jobs] == [
        "sample", "judge", "judge@gpt-4.1", "judge@gpt-4.1-mini", "demo_cloze",
    ]  # fmt: skip
    found = row()
    assert {column: found[column] for column in found if "_wr" in column and found[column] == found[column]} == {
        "alpacaeval_wr": 10, "alpacaeval_wr@gpt-4.1": 20, "alpacaeval_wr@gpt-4.1-mini": 30,
    }  # fmt: skip
    assert found["alpacaeval_judge"] == "model of demo"
    assert found["alpacaeval_judge@gpt-4.1"] == "model of gpt-4.1"
    assert (found["alpacaeval_n_unread"], found["alpacaeval_n_unread@gpt-4.1"]) == (1, 1)
    assert found["avg"] == 0.5
    assert found["status"] == (
        "complete; warning: alpacaeval: 1 of 10 judgements could not be read; "
        "warning: judge@gpt-4.1: alpacaeval: 1 of 10 judgements could not be read; "
        "warning: judge@gpt-4.1-mini: alpacaeval: 1 of 10 judgements could not be read"
    )
    assert len(frame(read_rows(root, "own"))) == 1


def test_a_failed_judge_costs_its_own_columns(suite, evaluate, row):
    suite(SUITE.format("[demo, gpt-4.1]"))
    plan = evaluate(without={"judge@gpt-4.1"})
    write_failure(layout.failure_beside(plan.jobs[2].record), "no quota", "JudgeRefused")
    found = row()
    assert (found["alpacaeval_wr"], found["avg"], found["status"]) == (10, 0.5, "judge@gpt-4.1: JudgeRefused: no quota")
    assert str(found["alpacaeval_wr@gpt-4.1"]) == "nan"


def test_a_judge_that_is_added_outdates_nothing(suite, evaluate, row):
    suite(SUITE.format("demo"))
    evaluate()
    suite(SUITE.format("[demo, gpt-4.1]"))
    plan = evaluate("demo_cloze")  # this saves the new definition
    assert plan.jobs[0].done
    found = row()
    assert (found["alpacaeval_wr"], found["avg"], found["status"]) == (10, 0.5, "judge@gpt-4.1: not requested")
    evaluate()
    assert (row()["alpacaeval_wr@gpt-4.1"], row()["status"]) == (20, "complete")


def test_the_second_judge_becomes_the_main_one_without_a_run(suite, evaluate, row):
    suite(SUITE.format("[demo, gpt-4.1]"))
    evaluate()
    suite(SUITE.format("[gpt-4.1, demo]"))
    evaluate("demo_cloze")
    found = row()
    assert (found["alpacaeval_wr"], found["alpacaeval_wr@demo"], found["status"]) == (20, 10, "complete")
    assert "alpacaeval_wr@gpt-4.1" not in found
    suite(SUITE.format("gpt-4.1"))
    assert all(job.done for job in evaluate().jobs)
    assert (row()["alpacaeval_wr"], "alpacaeval_wr@demo" in row()) == (20, False)


def test_a_replaced_judges_number_is_not_in_the_column_of_the_new_one(suite, evaluate, row):
    suite(SUITE.format("demo"))
    evaluate()
    suite(SUITE.format("gpt-4.1"))
    evaluate("demo_cloze")
    found = row()
    assert str(found["alpacaeval_wr"]) == "nan"
    assert "alpacaeval_judge" not in found
    assert found["status"] == "judge: not current: judge"


def test_one_judge_of_a_run_is_no_trial_if_the_suite_has_it(suite, evaluate, row, root, checkpoint):
    suite(SUITE.format("[demo, gpt-4.1]"))
    plan = evaluate("alpaca_eval", judge="gpt-4.1")
    assert [job.title for job in plan.jobs] == ["sample", "judge@gpt-4.1"]
    assert row()["status"] == "judge: not requested; demo_cloze: not requested"
    assert row()["alpacaeval_wr@gpt-4.1"] == 20
    evaluate("alpaca_eval", judge="gpt-4.1-mini")
    saved = read_plan(layout.plan_url(root, "own", checkpoint.name))
    assert [job.title for job in saved.jobs] == ["sample", "judge@gpt-4.1"]
    assert [job.judge for job in saved.trials] == ["gpt-4.1-mini"]


def test_a_trial_becomes_a_result_when_the_suite_gets_its_judge(suite, evaluate, row):
    suite(SUITE.format("demo"))
    evaluate()
    evaluate("alpaca_eval", judge="gpt-4.1")
    assert "alpacaeval_wr@gpt-4.1" not in row()
    suite(SUITE.format("[demo, gpt-4.1]"))
    evaluate("demo_cloze")
    assert (row()["alpacaeval_wr@gpt-4.1"], row()["status"]) == (20, "complete")


def test_progress_counts_each_judge(suite, evaluate, root, checkpoint):
    suite(SUITE.format("[demo, gpt-4.1]"))
    evaluate(without={"judge@gpt-4.1"})
    found = overview(root, [checkpoint], load_cluster(), ["own"]).progress["one"]["own"]
    assert (found.done, found.missing) == (("sample", "judge", "demo_cloze"), ("judge@gpt-4.1",))
    evaluate()
    assert overview(root, [checkpoint], load_cluster(), ["own"]).progress["one"]["own"].complete


def test_outputs_that_are_sampled_again_outdate_every_judge(suite, evaluate, row, root):
    suite(SUITE.format("[demo, gpt-4.1]"))
    plan = evaluate()
    finish(plan.jobs[0], files={"outputs.json": "other"})
    again = "not current: the outputs were sampled again"
    assert row()["status"].split("; ") == [f"judge: {again}", f"judge@gpt-4.1: {again}"]
    assert [job.title for job in evaluate().jobs if not job.done] == ["judge", "judge@gpt-4.1"]


def test_each_judge_is_part_of_the_estimate_and_the_swapped_order_counts(suite, evaluate, root, checkpoint):
    suite(SUITE.format("[demo, gpt-4.1]"))
    evaluate()
    own = load_suite("own")
    history = read_history(own, root)
    cost = history.of_suite(own, checkpoint, ["alpaca_eval"])
    assert (cost.pods, cost.judge_dollars) == (3, 10 + 20)
    cost = history.of_suite(own, checkpoint, ["alpaca_eval"], done=["sample", "judge"])
    assert (cost.pods, cost.judge_dollars, cost.gpu_hours) == (1, 20, 0)
    swapped = own.model_copy(update={"alpaca_eval": own.alpaca_eval.model_copy(update={"swap": True})})
    assert history.of_suite(swapped, checkpoint, ["alpaca_eval"]).judge_dollars == 2 * (10 + 20)
    plan = make_plan(swapped, checkpoint, root, load_cluster())
    assert [job.done for job in plan.jobs] == [True, False, False, True]
    assert history.of_plan(plan).judge_dollars == 2 * (10 + 20)
    assert all("--swap" in job.argv for job in plan.jobs[1:3])


def test_a_judge_with_swapped_orders_is_another_judge(suite, evaluate, row):
    suite(SUITE.format("demo"))
    evaluate()
    suite(SUITE.format("demo, swap: true"))
    evaluate("demo_cloze")
    assert row()["status"] == "judge: not current: judge"
    assert str(row()["alpacaeval_wr"]) == "nan"


def test_the_definition_of_one_judge_is_as_before_there_were_several(suite, evaluate, root):
    """Plans of earlier versions stay current."""
    suite(SUITE.format("demo"))
    evaluate()
    plan = read_plan(layout.plan_url(root, "own", "one"))
    older = plan.model_copy(update={"definitions": {k: v for k, v in plan.definitions.items() if k != "sample"}})
    filesystem.write_bytes(layout.plan_url(root, "own", "one"), older.model_dump_json().encode())
    (found,) = read_rows(root, "own")
    assert found.complete


def test_a_checkpoint_that_the_new_main_judge_has_not_judged_keeps_its_earlier_score_beside(suite, evaluate, row):
    suite(SUITE.format("demo"))
    evaluate()
    suite(SUITE.format("[gpt-4.1, demo]"))
    evaluate("demo_cloze")
    found = row()
    assert str(found["alpacaeval_wr"]) == "nan"
    assert (found["alpacaeval_wr@demo"], found["alpacaeval_judge@demo"]) == (10, "model of demo")
    assert found["status"] == "judge: not requested"


def test_the_flip_rate_has_wilsons_interval(suite, evaluate, row, root):
    suite(SUITE.format("[demo, gpt-4.1], swap: true"))
    plan = evaluate()
    for job, flips in ((plan.jobs[1], 30), (plan.jobs[2], 0)):
        scores = {"win_rate": 40, "flip_rate": flips}
        finish(
            job,
            scores=tuple(Score(task="alpaca_eval", metric=metric, value=value) for metric, value in scores.items()),
            details={"flips": flips, "judged_in_both_orders": 100},
            provenance=make_provenance(outputs_sha256="abc", judge_model="m"),
        )
    found = row()
    low, high = stats.binomtest(30, 100).proportion_ci(method="wilson")
    assert found["alpacaeval_flip_rate"] == 30
    assert (found["alpacaeval_flip_rate_low"], found["alpacaeval_flip_rate_high"]) == pytest.approx(
        (100 * low, 100 * high)
    )
    assert "alpacaeval_flip_rate_stderr" not in found
    assert (found["alpacaeval_flip_rate@gpt-4.1"], found["alpacaeval_flip_rate@gpt-4.1_low"]) == (0, 0)
    assert found["status"] == "complete"
    console = Console(width=200, record=True, file=StringIO())
    console.print(Summary(read_rows(root, "own"), "summary.csv"))
    shown = console.export_text()
    assert "30 (21.9 to 39.6)" in shown
    assert "0 (≤3.7)" in shown
    assert "alpacaeval_judge@gpt-4.1" in shown
