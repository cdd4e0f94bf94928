"""A suite's table: rows that may be compared have an average; results that are not current say why."""

from __future__ import annotations

import json
import math
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.data.prompts import load
from halos_eval.errors import StoreError
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.reports.table import document, read_rows
from halos_eval.stages import tools
from halos_eval.stages.identity import LOGIC
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Score
from tests.doubles import NOW, finish, make_checkpoint, make_provenance, write_safetensors
from tests.reports.pandas_table import frame

SUITE = "tasks: {demo_choice: {num_fewshot: 5}, demo_cloze: {}}"
WITH_JUDGE = "alpaca_eval: {prompts: demo, reference: demo, judge: demo}\ntasks: {demo_cloze: {}}"


@pytest.fixture
def checkpoint(tmp_path):
    """``checkpoint(name)`` makes a checkpoint."""

    def checkpoint(name, **metadata):
        folder = make_checkpoint(tmp_path / "checkpoints" / name)
        return Checkpoint(name=name, location=str(folder), metadata=Metadata(**metadata))

    return checkpoint


@pytest.fixture
def evaluate(root):
    """``evaluate(checkpoint, *parts)`` plans the suite ``own``, or some parts of it, and writes all records."""
    runs = iter(range(1000))

    def evaluate(checkpoint, *parts, value=0.5, judge=None, until=None):
        own = load_suite("own")
        plan = make_plan(own.keep(list(parts)), checkpoint, root, load_cluster(), judge=judge)
        save_plan(plan, own, root)
        ended = NOW + timedelta(minutes=next(runs))
        for job in plan.jobs if until is None else plan.jobs[:until]:
            metric = "win_rate" if job.stage == "judge" else "acc"
            scores = () if job.stage == "sample" else (Score(task=job.part, metric=metric, value=value),)
            inputs = {"outputs_sha256": "abc", "judge_model": str(job.judge)} if job.stage == "judge" else {}
            finish(job, scores=scores, provenance=make_provenance(ended, **inputs))

    return evaluate


@pytest.fixture
def rows(root):
    """``rows()`` returns the table's cells by checkpoint."""

    def rows():
        return {row.checkpoint: document(row) for row in read_rows(root, "own")}

    return rows


def test_rows_of_an_earlier_definition_have_no_average_and_say_what_differs(suite, checkpoint, evaluate, rows):
    suite(SUITE)
    evaluate(checkpoint("old"), value=0.9)
    suite(SUITE.replace("5", "0"))
    evaluate(checkpoint("new"), value=0.4)
    found = rows()
    assert found["new"] == {
        "model_name": "new", "demo_choice-acc": 0.4, "demo_cloze-acc": 0.4, "avg": 0.4, "series": 1,
        "status": "complete",
    }  # fmt: skip
    assert found["old"] == {
        "model_name": "old", "demo_choice-acc": 0.9, "demo_cloze-acc": 0.9, "series": 1,
        "status": "demo_choice: not current: num_fewshot 5 then, 0 now",
    }  # fmt: skip
    evaluate(checkpoint("old"), value=0.8)
    assert rows()["old"]["avg"] == 0.8
    assert rows()["old"]["status"] == "complete"


def test_each_cell_says_whether_it_is_current(suite, checkpoint, evaluate, root, tmp_path):
    judged = "alpaca_eval: {{prompts: demo, reference: {}, judge: [demo, gpt-4.1]}}\n"
    tasks = "tasks: {{demo_choice: {{num_fewshot: {}}}, demo_cloze: {{}}}}"
    suite((judged + tasks).format("demo", 5))
    evaluate(checkpoint("old"))
    stronger = [{**one, "output": "stronger"} for one in load("demo", "reference").rows]
    (tmp_path / "stronger.json").write_text(json.dumps(stronger))
    suite((judged + tasks).format(tmp_path / "stronger.json", 0))
    evaluate(checkpoint("new"))
    new, old = (row.cells for row in read_rows(root, "own"))
    names = {"alpacaeval_wr", "alpacaeval_wr@gpt-4.1", "demo_choice-acc", "demo_cloze-acc"}
    assert {name for name, cell in new.items() if cell and cell.current} == names
    assert {name for name, cell in old.items() if cell} == names
    assert {name for name, cell in old.items() if cell and cell.current} == {"demo_cloze-acc"}


def test_another_judge_of_one_run_is_not_the_suites_result(suite, checkpoint, evaluate, root):
    suite(WITH_JUDGE)
    one = checkpoint("one")
    evaluate(one, value=25)
    before = read_rows(root, "own")
    evaluate(one, "alpaca_eval", value=75, judge="gpt-4.1")
    assert read_rows(root, "own") == before
    assert (before[0].cells["alpacaeval_wr"].value, before[0].judge) == (25, "demo")


def test_a_part_that_only_another_judge_has_judged_was_not_requested(suite, checkpoint, evaluate, rows, root):
    suite(WITH_JUDGE)
    evaluate(checkpoint("one"), "demo_cloze")
    evaluate(checkpoint("one"), "alpaca_eval", judge="gpt-4.1")
    row = rows()["one"]
    assert row["status"].startswith("judge: not current: judge")
    (stages,) = (row.stages for row in read_rows(root, "own"))
    assert stages.keys() == {"sample", "judge", "demo_cloze"}
    assert stages["judge"] == "missing"  # the result of another judge is none of this suite


def test_one_row_never_mixes_two_chat_templates(suite, checkpoint, evaluate, rows):
    suite("tasks: {demo_choice: {apply_chat_template: true}, demo_cloze: {apply_chat_template: true}}")
    evaluate(checkpoint("one", chat_template="chatml"), value=0.9)
    evaluate(checkpoint("one"), "demo_choice", value=0.4)
    row = rows()["one"]
    assert (row["demo_choice-acc"], row["demo_cloze-acc"]) == (0.4, 0.9)
    assert "avg" not in row
    assert row["status"] == ("demo_cloze: not current: planned before the suite or the checkpoint's metadata changed")


def test_a_judgement_of_other_outputs_says_that_they_were_sampled_otherwise(suite, checkpoint, evaluate, rows):
    own = WITH_JUDGE.replace("judge: demo", "judge: demo, sampling: {temperature: 0.7}")
    suite(own)
    evaluate(checkpoint("old"), value=90)
    suite(own.replace("0.7", "0"))
    evaluate(checkpoint("new"), value=10)
    sampled = "the outputs were sampled with other settings"
    assert rows()["old"]["status"] == (
        f"sample: not current: temperature 0.7 then, 0.0 now; judge: not current: {sampled}"
    )
    evaluate(checkpoint("old"), "demo_cloze")
    assert rows()["old"]["status"].endswith(f"judge: not current: {sampled}")


@pytest.fixture
def upgrade(monkeypatch):
    """``upgrade(tool)`` gives a tool the version 99.1."""

    def upgrade(tool):
        later = tools.versions() | {tool: "99.1"}
        monkeypatch.setattr(tools, "versions", lambda: dict(later))
        monkeypatch.setattr(tools, "pinned", later.__getitem__)

    return upgrade


def test_a_judgement_of_outputs_of_another_series_says_so(suite, checkpoint, evaluate, rows, upgrade):
    suite(WITH_JUDGE.replace("tasks: {", "tasks: {demo_choice: {}, "))
    evaluate(checkpoint("one"), "demo_choice", "demo_cloze")
    evaluate(checkpoint("one"), "alpaca_eval", until=1)
    upgrade("vllm")
    evaluate(checkpoint("one"), "alpaca_eval")
    row = rows()["one"]
    assert (row["series"], row["status"]) == (1, "judge: not current: the outputs are of another series")


def test_a_result_of_other_tools_than_its_rows_series_names_them(suite, checkpoint, evaluate, rows, upgrade):
    suite("tasks: {demo_choice: {}, demo_cloze: {}}")
    evaluate(checkpoint("one"))
    version = tools.pinned("lm-eval")
    upgrade("lm-eval")
    suite("tasks: {demo_choice: {}, demo_cloze: {num_fewshot: 3}}")
    evaluate(checkpoint("one"), until=0)
    evaluate(checkpoint("one"), "demo_cloze")
    row = rows()["one"]
    assert row["series"] == 2
    assert row["status"] == f"demo_choice: not current: lm-eval {version}, and 99.1 in this row's series"


def test_the_logic_of_this_project_is_named_only_if_it_changed(suite, checkpoint, evaluate, rows, monkeypatch):
    suite(SUITE)
    evaluate(checkpoint("old"))
    monkeypatch.setitem(LOGIC, "harness", 99)
    suite(SUITE.replace("5", "0"))
    evaluate(checkpoint("new"))
    assert rows()["old"]["status"] == (
        "demo_choice: not current: num_fewshot 5 then, 0 now, the logic of halos-eval; "
        "demo_cloze: not current: the logic of halos-eval"
    )


def test_results_of_other_weights_say_so(suite, checkpoint, evaluate, rows, tmp_path):
    suite(SUITE)
    one = checkpoint("one")
    evaluate(one)
    write_safetensors(tmp_path / "checkpoints" / "one" / "model.safetensors", b"other   ")
    evaluate(one, "demo_choice")
    assert rows()["one"]["status"] == "demo_cloze: not current: weights"


def test_a_task_that_the_suite_has_no_more_has_no_column(suite, checkpoint, evaluate, rows):
    suite(SUITE)
    evaluate(checkpoint("one"))
    suite("tasks: {demo_cloze: {}}")
    evaluate(checkpoint("two"))
    assert rows()["one"] == rows()["two"] | {"model_name": "one"}


def test_a_new_task_is_missing_in_older_rows(suite, checkpoint, evaluate, rows):
    suite("tasks: {demo_cloze: {}}")
    evaluate(checkpoint("one"))
    suite(SUITE)
    evaluate(checkpoint("two"))
    row = rows()["one"]
    assert (row["status"], "avg" in row) == ("demo_choice: not requested", False)


def test_new_tools_begin_a_series_and_the_newest_comes_first(suite, checkpoint, evaluate, rows, root, monkeypatch):
    suite(SUITE)
    evaluate(checkpoint("a"), value=0.3)
    evaluate(checkpoint("b"), value=0.3)
    monkeypatch.setattr("halos_eval.stages.tools.pinned", lambda package: "9.9")
    evaluate(checkpoint("b"), value=0.4)
    assert [(row.checkpoint, row.series, row.average) for row in read_rows(root, "own")] == [
        ("b", 2, 0.4),
        ("a", 1, 0.3),
    ]


def test_a_series_that_is_not_complete_yet_replaces_nothing(suite, checkpoint, evaluate, rows, monkeypatch):
    suite(SUITE)
    one = checkpoint("one")
    evaluate(one, value=0.3)
    before = rows()
    monkeypatch.setattr("halos_eval.stages.tools.pinned", lambda package: "9.9")
    evaluate(one, value=0.4, until=1)
    assert rows() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not a valid plan of this version"), ('{"version": 3}', "is a plan of a newer version of halos-eval")],
)
def test_a_plan_that_cannot_be_read_costs_its_own_row(suite, checkpoint, evaluate, rows, root, text, words):
    suite(SUITE)
    evaluate(checkpoint("one"))
    filesystem.write_bytes(layout.plan_url(root, "own", "team/two"), text.encode())
    found = rows()
    assert found["one"]["status"] == "complete"
    assert found["team/two"].keys() == {"model_name", "status"}
    assert words in found["team/two"]["status"]


def test_a_damaged_record_costs_its_own_cell(suite, checkpoint, evaluate, rows, root):
    suite(SUITE)
    evaluate(checkpoint("one"))
    plan = make_plan(load_suite("own"), checkpoint("one"), root, load_cluster())
    filesystem.write_bytes(plan.jobs[0].record, b"{")
    row = rows()["one"]
    assert "is not a valid record" in row["status"]
    assert (row["demo_cloze-acc"], "avg" in row) == (0.5, False)


RUNS = [("a", ("demo_choice",)), ("a", ("demo_cloze",)), ("b", ()), ("b", ("demo_cloze",)), ("c", ("demo_choice",))]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(RUNS))
def test_any_order_of_runs_gives_the_same_table(suite, checkpoint, evaluate, root, order):
    suite(SUITE)
    filesystem.delete(root)
    for name, parts in order:
        evaluate(checkpoint(name), *parts)
    columns = ["model_name", "demo_choice-acc", "demo_cloze-acc", "avg", "series", "status"]
    table = frame(read_rows(root, "own"))[columns].to_dict("records")
    rows = [{key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
            for row in table]  # fmt: skip
    full = {"demo_choice-acc": 0.5, "demo_cloze-acc": 0.5, "avg": 0.5, "series": 1, "status": "complete"}
    half = {"demo_cloze-acc": None, "avg": None, "status": "demo_cloze: not requested"}
    assert rows == [
        {"model_name": "a"} | full,
        {"model_name": "b"} | full,
        {"model_name": "c"} | full | half,
    ]


@pytest.mark.parametrize("document", ["series.json", "suites/own.json", "plans/own/one.json", "record.json"])
def test_a_store_that_fails_for_a_moment_gives_no_table_instead_of_a_wrong_one(
    suite, checkpoint, evaluate, rows, document, monkeypatch
):
    suite(SUITE)
    evaluate(checkpoint("one"))
    real = filesystem.read_bytes

    def read(url, *words):
        if url.endswith(document):
            raise StoreError(f"{url}: 503 Slow Down")
        return real(url, *words)

    monkeypatch.setattr(filesystem, "read_bytes", read)
    with pytest.raises(StoreError, match="503"):
        rows()


@pytest.mark.parametrize("document", ["series.json", "plans/own/one.json", "weights/one.json"])
def test_a_store_that_fails_for_a_moment_replaces_nothing(suite, checkpoint, evaluate, root, document, monkeypatch):
    suite(SUITE)
    one = checkpoint("one")
    evaluate(one)
    before = filesystem.read_bytes(f"{root}/{document}")
    real = filesystem.read_bytes

    def read(url, *words):
        if url.endswith(document):
            raise StoreError(f"{url}: 503 Slow Down")
        return real(url, *words)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "read_bytes", read)
        with pytest.raises(StoreError, match="503"):
            evaluate(one, "demo_choice")
    assert filesystem.read_bytes(f"{root}/{document}") == before
