"""The policy's gate: what a checkpoint is compared with, and what its outcome says."""

from __future__ import annotations

import csv
import json
from datetime import timedelta

import pytest

from halos_eval.config.policy import Gate
from halos_eval.data.prompts import load
from halos_eval.errors import BadInput
from halos_eval.planning.selection import Evaluation, Selection
from halos_eval.reports.comparison import Verdict, read_comparison, read_gate
from halos_eval.reports.gate import baseline_of
from halos_eval.reports.message import compose
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.storage import filesystem, layout
from tests.doubles import NOW
from tests.reports.evaluated import evaluate, sample

__all__ = ["evaluate"]

RIGHT, WRONG = [1.0] * 40, [0.0] * 40
HALF = [1.0, 0.0] * 20


@pytest.fixture
def gated(root, suite, evaluate):
    """``gated(name, gate, values)`` evaluates a checkpoint and writes the table with this gate; returns the outcome."""
    suite("tasks: {demo_choice: {}, demo_cloze: {}}")

    def gated(name, gate, choice=RIGHT, cloze=RIGHT, **more):
        evaluate(name, demo_choice=choice, demo_cloze=cloze, **more)
        output = layout.report_url(root, "own")
        summarize(SummarizeConfig(root=root, suite="own", checkpoint=name, output=output, gate=gate))
        return read_gate(root, "own", name)

    return gated


@pytest.fixture
def tabled(root, evaluate):
    """``tabled(name, TASK=values, ...)`` evaluates a checkpoint and writes the table."""

    def tabled(name, **values):
        evaluate(name, **values)
        summarize(SummarizeConfig(root=root, suite="own", checkpoint=name, output=layout.report_url(root, "own")))

    return tabled


def cells(root):
    """The column ``gate`` of the table, by checkpoint."""
    lines = filesystem.read_bytes(layout.report_url(root, "own")).decode().splitlines()
    return {row["model_name"]: row.get("gate", "") for row in csv.DictReader(lines)}


def test_a_worse_checkpoint_blocks_or_warns_by_task(gated, root):
    gated("base", None)
    outcome = gated("new", Gate(against="fixed", checkpoint="base", block=("demo_cl*",)), WRONG, WRONG)
    assert (outcome.verdict, outcome.baseline) == (Verdict.WORSE, "base")
    assert (outcome.blocked, outcome.warned) == (("demo_cloze",), ("demo_choice",))
    assert [flip.task for flip in outcome.flips] == ["demo_choice", "demo_cloze", "demo_choice"]
    assert read_comparison(root, "own", "new", "base").verdict == Verdict.WORSE
    words = "worse beside base (worse, blocks: demo_cloze; worse: demo_choice)"
    assert cells(root) == {"base": "", "new": words}
    gated("later", None)
    assert cells(root) == {"base": "", "new": words, "later": ""}


def test_a_gate_that_finds_nothing_worse_is_open(gated):
    gated("base", None)
    outcome = gated("new", Gate(against="fixed", checkpoint="base", block=("*",)))
    assert (outcome.verdict, outcome.blocked, outcome.warned) == (Verdict.UNKNOWN, (), ())


def test_the_parent_is_named_by_a_tag(gated, root):
    gated("base", None)
    gate = Gate(against="parent")
    assert gated("new", gate, WRONG, tags={"parent": "base"}).baseline == "base"
    orphan = gated("orphan", gate)
    assert (orphan.baseline, orphan.verdict) == (None, None)
    assert orphan.reason == "orphan has no tag parent. Set it in halos_eval.yaml or in the registry"
    unknown = gated("unknown", gate, tags={"parent": "gone"})
    assert (unknown.baseline, unknown.verdict) == ("gone", None)
    assert "has no plan of own for gone" in unknown.reason
    assert cells(root)["orphan"].startswith("not compared: orphan has no tag parent")


def test_the_best_and_the_last_with_the_same_tags(gated):
    days = {name: NOW + timedelta(days=day) for day, name in enumerate(["best", "other", "middle", "last", "new"])}
    for name, values, base in (
        ("best", RIGHT, "x"),
        ("other", RIGHT, "y"),
        ("middle", HALF, "x"),
        ("last", WRONG, "x"),
    ):
        gated(name, None, values, tags={"base": base}, registered=days[name])
    best, last = Gate(against="best", same_tags=("base",)), Gate(against="last", same_tags=("base",))
    new = {"tags": {"base": "x"}, "registered": days["new"]}
    assert gated("new", best, HALF, **new).baseline == "best"
    assert gated("new", last, HALF, **new).baseline == "last"
    assert gated("middle", last, HALF, tags={"base": "x"}, registered=days["middle"]).baseline == "best"
    assert gated("first", best, tags={"base": "z"}).reason.startswith("no earlier checkpoint is the best checkpoint")


def test_a_checkpoint_whose_task_failed_is_not_the_best(tabled, root, suite):
    suite("alpaca_eval: {prompts: demo, reference: demo, judge: demo}\ntasks: {demo_choice: {}, demo_cloze: {}}")
    tabled("good", demo_choice=RIGHT, demo_cloze=HALF, alpaca_eval=[1.5] * 20)
    tabled("failed", demo_choice=RIGHT, alpaca_eval=[1.9] * 20)  # 90 %, but no average
    tabled("new", demo_choice=RIGHT, demo_cloze=RIGHT, alpaca_eval=[1.5] * 20)
    assert baseline_of(root, "own", "new", Gate(against="best")) == "good"


def test_a_score_that_is_not_current_is_no_baseline(tabled, evaluate, root, suite, tmp_path):
    """Neither in the first evaluation of the new definition, whose table still has the rows of the earlier one."""
    suite("alpaca_eval: {prompts: demo, reference: demo, judge: demo}")
    tabled("old", alpaca_eval=[1.9] * 20)
    stronger = [{**one, "output": "stronger"} for one in load("demo", "reference").rows]
    (tmp_path / "stronger.json").write_text(json.dumps(stronger))
    suite(f"alpaca_eval: {{prompts: demo, reference: {tmp_path}/stronger.json, judge: demo}}")
    gate = Gate(against="best")
    evaluate("new", alpaca_eval=[1.1] * 20)
    with pytest.raises(BadInput, match="no earlier checkpoint is the best checkpoint"):
        baseline_of(root, "own", "new", gate)
    tabled("new", alpaca_eval=[1.1] * 20)
    tabled("newer", alpaca_eval=[1.5] * 20)
    assert baseline_of(root, "own", "newer", gate) == "new"


def test_a_row_that_another_process_has_outdated_is_no_baseline(tabled, evaluate, root, suite):
    suite("tasks: {demo_choice: {}}")
    tabled("good", demo_choice=RIGHT)
    tabled("less", demo_choice=HALF)
    evaluate("good", demo_choice=WRONG)  # its table is not written yet
    evaluate("new", demo_choice=RIGHT)
    assert baseline_of(root, "own", "new", Gate(against="best")) == "less"


def test_the_morning_message_has_the_regression_and_its_items(gated, root):
    gated("base", None)
    hostile = [sample(number, 0.0, resps=[["`<b>`|\n# answer"]]) for number in range(40)]
    gated("new", Gate(against="fixed", checkpoint="base", block=("*",)), hostile)
    evaluation = Evaluation(checkpoint="new", suite="own", run_id="r")
    body = compose("night", Selection(evaluations=(evaluation,)), {"r": "failed"}, root).body
    assert "**Compared**" in body
    assert "`worse beside base (worse, blocks: demo_choice)`" in body
    assert body.count("before `right`") == 3
    assert "now `'‹b›'¦ # answer`" in body  # noqa: RUF001
    assert "only in the run's log" not in body
