"""Two checkpoints, paired by item: what is said of them, and what is not."""

from __future__ import annotations

import json

import pytest
from scipy import stats

from halos_eval.cli.compare import CompareConfig, compare_checkpoints
from halos_eval.errors import BadInput
from halos_eval.reports.compare import common_suite, compare, overall
from halos_eval.reports.comparison import Verdict, read_comparison
from halos_eval.reports.table import read_rows
from halos_eval.storage import filesystem
from tests.doubles import write_safetensors
from tests.reports.evaluated import evaluate, sample

__all__ = ["evaluate"]

SUITE = "tasks: {demo_choice: {}, demo_cloze: {}}"
RIGHT, WRONG = [1.0] * 40, [0.0] * 40


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr("halos_eval.analysis.paired.RESAMPLES", 199)


@pytest.fixture
def tasks(root, suite, evaluate):
    """``tasks(a, b)`` evaluates two checkpoints and returns their comparison, and its tasks by name."""
    suite(SUITE)

    def tasks(a, b, margin=0.01):
        evaluate("a", **a)
        evaluate("b", **b)
        found = compare(root, "own", "a", "b", margin)
        return found, {one.task: one for one in found.tasks}

    return tasks


def judged(temperature=1.0):
    """A suite whose outputs are judged."""
    return f"alpaca_eval: {{prompts: demo, reference: demo, judge: demo, sampling: {{temperature: {temperature}}}}}"


def save_again(folder):
    """Other weights at the place of a checkpoint's."""
    write_safetensors(folder / "model.safetensors", b"\x01" * 8)


def test_a_checkpoint_is_worse_where_its_documents_are(tasks):
    a = {"demo_choice": [0.0] * 12 + [1.0] * 28, "demo_cloze": RIGHT}
    found, of = tasks(a, {"demo_choice": [1.0, 0.0] + [1.0] * 38, "demo_cloze": RIGHT})
    choice = of["demo_choice"]
    assert (found.verdict, choice.verdict) == (Verdict.WORSE, Verdict.WORSE)
    assert (choice.n, choice.a, choice.b) == (40, 0.7, 0.975)
    assert choice.difference == pytest.approx(-0.275)
    # 11 documents changed, all in one direction; Holm's correction is for two tasks
    assert choice.p == pytest.approx(stats.binomtest(0, 11).pvalue)
    assert choice.p_holm == pytest.approx(2 * choice.p)
    assert choice.better == ()
    assert sorted(choice.worse, key=int) == ["0", *map(str, range(2, 12))]
    assert of["demo_cloze"].verdict == Verdict.UNKNOWN  # 40 equal answers do not show that a point is not lost


def test_the_same_in_the_other_direction_is_better(tasks):
    found, of = tasks({"demo_choice": RIGHT, "demo_cloze": RIGHT}, {"demo_choice": WRONG, "demo_cloze": RIGHT})
    assert found.verdict == of["demo_choice"].verdict == Verdict.BETTER
    assert {(flip.task, flip.answer_a, flip.answer_b) for flip in found.flips} == {("demo_choice", "right", "wrong")}
    assert found.flips[0].prompt.startswith("prompt ")


def test_a_difference_within_the_margin_does_not_matter(tasks):
    found, _ = tasks(
        {"demo_choice": RIGHT, "demo_cloze": RIGHT}, {"demo_choice": RIGHT, "demo_cloze": RIGHT}, margin=0.2
    )
    assert found.verdict == Verdict.SAME


def test_one_worse_task_is_worse_whatever_is_better():
    assert overall([Verdict.BETTER, Verdict.WORSE, Verdict.SAME]) == Verdict.WORSE
    assert overall([Verdict.BETTER, Verdict.UNKNOWN]) == Verdict.BETTER
    assert overall([Verdict.SAME, Verdict.NOT_COMPARABLE]) == Verdict.UNKNOWN
    assert overall([Verdict.NOT_COMPARABLE]) == overall([]) == Verdict.NOT_COMPARABLE


def test_documents_of_one_passage_are_clusters(tasks):
    documents = [sample(number, float(number % 3 == 0), doc={"passage": f"text {number // 4}"}) for number in range(40)]
    others = [one | {"acc": 1.0} for one in documents]
    _, of = tasks({"demo_choice": documents, "demo_cloze": RIGHT}, {"demo_choice": others, "demo_cloze": RIGHT})
    assert (of["demo_choice"].n, of["demo_choice"].clusters) == (40, 10)
    assert of["demo_choice"].verdict == Verdict.WORSE


def test_equal_answers_differ_in_nothing_if_a_tag_has_documents_without_a_score(root, suite, evaluate):
    suite("tasks: {demo_choice: {}}")
    evaluate("a", demo_choice={"one": [None] * 5 + [1.0] * 95, "two": [0.0] * 100})
    evaluate("b", demo_choice={"one": [1.0] * 100, "two": [0.0] * 100})
    (found,) = compare(root, "own", "a", "b", 0.01).tasks
    assert (found.n, found.difference, found.p) == (195, 0, 1)
    assert (found.a, found.b) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.verdict not in {Verdict.BETTER, Verdict.WORSE}
    assert found.reason == "5 items have only one score"


def test_each_task_of_a_tag_counts_as_much_as_the_others(root, suite, evaluate):
    suite("tasks: {demo_choice: {}}")
    evaluate("a", demo_choice={"one": [1.0] * 8 + [0.0] * 2, "two": [None] * 10 + [1.0] * 90})
    evaluate("b", demo_choice={"one": [0.0] * 10, "two": [1.0] * 100})
    (found,) = compare(root, "own", "a", "b", 0.01).tasks
    assert (found.n, found.a, found.b) == (100, pytest.approx((0.8 + 1) / 2), pytest.approx(0.5))
    assert found.difference == pytest.approx(0.4)


@pytest.mark.parametrize("low", [[3.0] * 40, [0.0] * 40, [3 + number / 40 for number in range(40)]])
def test_values_that_are_no_shares_have_an_interval_around_their_difference(tasks, low):
    high = [5 + 55 * number / 39 for number in range(40)]
    _, of = tasks({"demo_choice": low, "demo_cloze": high}, {"demo_choice": high, "demo_cloze": low})
    worse, better = of["demo_choice"], of["demo_cloze"]
    assert (worse.verdict, better.verdict) == (Verdict.WORSE, Verdict.BETTER)
    assert worse.low < worse.difference < worse.high < 0
    assert (worse.difference, worse.low, worse.high) == pytest.approx((-better.difference, -better.high, -better.low))
    assert worse.detectable == pytest.approx(better.detectable)


def test_equal_values_that_are_no_shares_say_nothing_of_their_range(tasks):
    _, of = tasks({"demo_choice": [3.0] * 40, "demo_cloze": RIGHT}, {"demo_choice": [3.0] * 40, "demo_cloze": RIGHT})
    assert of["demo_choice"].verdict == Verdict.NOT_COMPARABLE
    assert of["demo_choice"].reason == "all values are 3, which says nothing of the range of acc"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"doc_hash": "other"}, "the documents or references differ"),
        ({"doc_id": 1000}, "the documents or references differ"),
    ],
)
def test_other_documents_are_not_compared(tasks, change, words):
    other = [sample(number, 1.0) | change for number in range(1)]
    found, of = tasks({"demo_choice": other, "demo_cloze": RIGHT}, {"demo_choice": [1.0], "demo_cloze": RIGHT})
    assert of["demo_choice"].reason == words
    assert found.differs == (f"demo_choice: {words}",)


def test_another_definition_is_not_comparable_and_says_what_differs(root, suite, evaluate):
    suite("tasks: {demo_choice: {num_fewshot: 5}}")
    evaluate("a", demo_choice=RIGHT)
    suite("tasks: {demo_choice: {num_fewshot: 0}}")
    evaluate("b", demo_choice=RIGHT)
    found = compare(root, "own", "a", "b", 0.01)
    assert (found.verdict, found.differs) == (Verdict.NOT_COMPARABLE, ("demo_choice: num_fewshot 5 and 0",))


def test_results_of_weights_that_were_saved_again_are_not_compared(root, suite, evaluate, tmp_path):
    suite(SUITE)
    evaluate("base", demo_choice=WRONG, demo_cloze=RIGHT)
    evaluate("new", demo_choice=RIGHT, demo_cloze=RIGHT)
    save_again(tmp_path / "checkpoints" / "new")
    evaluate("new", demo_cloze=WRONG)  # the stage of demo_choice was killed
    choice, cloze = compare(root, "own", "new", "base", 0.01).tasks
    assert (choice.verdict, choice.reason) == (Verdict.NOT_COMPARABLE, "A is not current: weights")
    assert (cloze.verdict, cloze.reason) == (Verdict.WORSE, "")
    other = compare(root, "own", "base", "new", 0.01)
    assert other.differs == ("demo_choice: B is not current: weights",)


def test_results_of_other_weights_are_not_compared_if_the_plan_left_the_task_out(root, suite, evaluate, tmp_path):
    suite(SUITE)
    evaluate("base", demo_choice=WRONG, demo_cloze=RIGHT)
    evaluate("new", demo_choice=RIGHT, demo_cloze=RIGHT)
    save_again(tmp_path / "checkpoints" / "new")
    evaluate("new", parts=["demo_cloze"], demo_cloze=RIGHT)
    found = compare(root, "own", "new", "base", 0.01)
    assert found.differs == ("demo_choice: A is not current: weights",)
    assert found.verdict == Verdict.UNKNOWN


def test_judgements_of_other_weights_are_not_compared(root, suite, evaluate, tmp_path):
    suite(judged())
    evaluate("a", alpaca_eval=[2.0] * 40)
    evaluate("b", alpaca_eval=[1.0] * 40)
    save_again(tmp_path / "checkpoints" / "a")
    evaluate("a")  # sampled, and not judged yet
    found = compare(root, "own", "a", "b", 0.01)
    assert (found.verdict, found.differs) == (Verdict.NOT_COMPARABLE, ("alpaca_eval: A is not current: weights",))


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_judgements_of_other_outputs_than_those_sampled_now_are_not_compared(root, suite, evaluate, temperature):
    suite(judged())
    evaluate("a", alpaca_eval=[2.0] * 40)
    suite(judged(temperature))
    evaluate("b", alpaca_eval=[1.0] * 40)
    evaluate("a", outputs="sampled again")
    words = "is not current: the outputs were sampled again"
    assert compare(root, "own", "a", "b", 0.01).differs == (f"alpaca_eval: A {words}",)
    assert compare(root, "own", "b", "a", 0.01).differs == (f"alpaca_eval: B {words}",)


def test_judgements_of_outputs_that_were_sampled_in_another_way_are_not_compared(root, suite, evaluate):
    suite(judged())
    evaluate("a", alpaca_eval=[2.0] * 40)
    suite(judged(temperature=0.25))
    evaluate("b", alpaca_eval=[1.0] * 40)
    (reason,) = compare(root, "own", "a", "b", 0.01).differs
    assert reason == "alpaca_eval: sampled with temperature 1.0 and 0.25"


def test_judgements_without_the_record_of_their_outputs_are_not_compared(root, suite, evaluate):
    suite(judged())
    (sampled, _) = evaluate("a", alpaca_eval=[2.0] * 40).jobs
    evaluate("b", alpaca_eval=[1.0] * 40)
    filesystem.delete_file(sampled.record)
    (reason,) = compare(root, "own", "a", "b", 0.01).differs
    assert reason == "alpaca_eval: A has no record of the judged outputs"


def test_results_of_an_older_definition_are_compared_with_a_remark(root, suite, evaluate):
    suite("tasks: {demo_choice: {num_fewshot: 5}}")
    evaluate("a", demo_choice=RIGHT)
    evaluate("b", demo_choice=WRONG)
    suite("tasks: {demo_choice: {num_fewshot: 0}, demo_cloze: {}}")
    evaluate("c", demo_choice=RIGHT)
    (choice, *_) = compare(root, "own", "a", "b", 0.01).tasks
    now = "is not current: num_fewshot 5 then, 0 now"
    assert (choice.verdict, choice.reason) == (Verdict.BETTER, f"A {now}; B {now}")


def test_damaged_samples_and_missing_results_cost_only_their_task(root, suite, evaluate):
    suite(SUITE)
    damaged = evaluate("a", demo_choice=RIGHT, demo_cloze=RIGHT).jobs[0]
    evaluate("b", demo_choice=RIGHT, demo_cloze=WRONG)
    (url,) = filesystem.find(damaged.record.rpartition("/")[0], ".jsonl.gz")
    filesystem.write_bytes(url, b"damaged")
    found = compare(root, "own", "a", "b", 0.01)
    choice, cloze = found.tasks
    assert choice.verdict == Verdict.NOT_COMPARABLE
    assert "was changed after its record was written. Run this stage again" in choice.reason
    assert found.verdict == cloze.verdict == Verdict.BETTER
    evaluate("c", demo_cloze=RIGHT)
    (reason,) = compare(root, "own", "c", "b", 0.01).differs
    assert reason.startswith("demo_choice: A without a result (no result")


def test_a_comparison_says_which_results_it_is_of(root, suite, evaluate):
    suite("tasks: {demo_choice: {}}")
    evaluate("a", demo_choice=RIGHT)
    evaluate("b", demo_choice=WRONG)
    (one,) = compare(root, "own", "a", "b", 0.01).tasks
    samples = {row.checkpoint: row.samples["demo_choice"] for row in read_rows(root, "own")}
    assert (one.result_a, one.result_b) == (samples["a"], samples["b"])
    assert one.result_a != one.result_b


def test_preferences_of_a_judge(root, suite, evaluate):
    suite(judged())
    evaluate("a", alpaca_eval=[1.1] * 30 + [None, 2.0])
    evaluate("b", alpaca_eval=[1.9] * 30 + [1.0, 2.0])
    (one,) = compare(root, "own", "a", "b", 0.01).tasks
    assert (one.task, one.metric, one.n) == ("alpaca_eval", "win_rate", 31)
    assert one.a == pytest.approx((30 * 10 + 100) / 31)
    assert (one.verdict, len(one.worse), one.test) == (Verdict.WORSE, 30, "paired permutation test")
    assert one.reason == "1 items have only one score"


def test_what_the_command_prints_and_returns(root, tasks, capsys):
    found, _ = tasks({"demo_choice": WRONG, "demo_cloze": RIGHT}, {"demo_choice": RIGHT, "demo_cloze": RIGHT})
    assert compare_checkpoints(CompareConfig(a="a", b="b", store=root, save=True)) == 22
    shown = capsys.readouterr().out
    assert "a beside b: worse in demo_choice" in shown
    assert "answer" not in shown.split("A: ")[0].splitlines()[-1]
    assert compare_checkpoints(CompareConfig(a="b", b="a", store=root, json=True)) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "better"
    assert read_comparison(root, "own", "a", "b") == found


def test_names_that_cannot_be_compared(root, suite, evaluate):
    suite(SUITE)
    with pytest.raises(BadInput, match=r"no plan for a in any suite \(none\)"):
        common_suite(root, "a", "b")
    evaluate("a", demo_choice=RIGHT)
    suite(SUITE, "other")
    evaluate("b", "other", demo_choice=RIGHT)
    with pytest.raises(BadInput, match="no suite has evaluated both checkpoints \\(a by own; b by other\\)"):
        common_suite(root, "a", "b")
    with pytest.raises(BadInput, match="has no plan of own for b: evaluate it first"):
        compare(root, "own", "a", "b", 0.01)
    with pytest.raises(BadInput, match="are the same checkpoint"):
        compare(root, "own", "a", "a", 0.01)
    evaluate("b", demo_choice=RIGHT)
    assert common_suite(root, "a", "b") == "own"
    evaluate("a", "other", demo_choice=RIGHT)
    with pytest.raises(BadInput, match=r"several suites have evaluated both \(other, own\). Choose one with --suite"):
        common_suite(root, "a", "b")


def test_texts_of_flips_have_no_control_characters(tasks):
    hostile = [sample(number, 0.0, resps=[["<script>\x1b[31m\u202e\n" + "x" * 1000]]) for number in range(20)]
    found, _ = tasks({"demo_choice": hostile, "demo_cloze": RIGHT}, {"demo_choice": [1.0] * 20, "demo_cloze": RIGHT})
    text = found.flips[0].answer_a
    assert len(text) < 310
    assert text.isprintable()
