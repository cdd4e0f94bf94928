"""Progress from plans and the names of records, as plans and suites are now."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pytest

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.planning.progress import overview
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import write_model
from tests.doubles import make_checkpoint, make_record, write_failure

SUITE = """
enforce_eager: true
alpaca_eval: {prompts: demo, reference: demo, judge: demo}
tasks: {demo_choice: {num_fewshot: 0}, demo_cloze: {}}
"""
ALL = ("sample", "judge", "demo_choice", "demo_cloze")


@pytest.fixture
def suite(suite):
    suite(SUITE)
    return suite


@pytest.fixture
def checkpoint(tmp_path):
    folder = make_checkpoint(tmp_path / "kto" / "FINAL")
    return Checkpoint(name="team/kto", location=str(folder), registered=datetime.now(UTC) - timedelta(days=1))


@pytest.fixture
def evaluate(root, checkpoint, suite):
    """``evaluate(*titles)`` plans ``own``, or parts of it, and writes the records of these jobs."""

    def evaluate(*titles, parts=(), failed=()):
        own = load_suite("own")
        plan = make_plan(own.keep(list(parts)), checkpoint, root, load_cluster())
        save_plan(plan, own, root)
        for job in plan.jobs:
            if job.title in titles:
                write_model(job.record, make_record(job.stage, job.task, fingerprint=job.fingerprint))
            if job.title in failed:
                write_failure(layout.failure_beside(job.record))

    return evaluate


def progress(root, checkpoint, *suites):
    found = overview(root, [checkpoint], suites)
    assert found.unreadable == {}
    return found.progress[checkpoint.name].get("own")


def test_unavailable_parts_are_not_complete(root, checkpoint, suite):
    own = load_suite("own")
    plan = make_plan(own.keep(["demo_choice"]), checkpoint, root, load_cluster())
    plan = plan.model_copy(update={"unavailable": {"demo_cloze": "it is gated", "gone": "the suite has it no more"}})
    save_plan(plan, own, root)
    write_model(plan.jobs[0].record, make_record(fingerprint=plan.jobs[0].fingerprint))
    found = progress(root, checkpoint)
    assert (found.done, found.failed, found.missing) == (("demo_choice",), ("demo_cloze",), ("alpaca_eval",))
    assert not found.complete
    suite(SUITE.replace("demo_cloze: {}", "demo_cloze: {limit: 1}"))
    assert "demo_cloze" in progress(root, checkpoint).missing


def test_nothing_was_ever_planned(root, checkpoint):
    assert overview(root, [checkpoint]) == ((), {"team/kto": {}}, {})
    assert overview(root, [checkpoint], ["demo"]) == (("demo",), {"team/kto": {}}, {})


def test_an_unknown_suite(root, checkpoint):
    with pytest.raises(BadInput, match=r"unknown suite 'nothing', '\.\./own'; available: demo"):
        overview(root, [checkpoint], ["nothing", "demo", "../own"])


def test_planned_and_run(root, checkpoint, evaluate):
    evaluate()
    found = progress(root, checkpoint)
    assert (found.done, found.missing, str(found)) == ((), ALL, "0 of 4")
    evaluate("sample", failed=["judge", "demo_cloze"])
    found = progress(root, checkpoint)
    assert (found.done, found.failed, found.missing) == (("sample",), ("judge", "demo_cloze"), ("demo_choice",))
    assert str(found) == "1 of 4, 2 failed"
    evaluate(*ALL)
    found = progress(root, checkpoint)
    assert (found.done, found.complete, str(found)) == (ALL, True, "complete")


def test_parts_that_were_never_selected_are_missing(root, checkpoint, evaluate):
    evaluate("demo_choice", parts=["demo_choice"])
    found = progress(root, checkpoint)
    assert (found.done, found.missing, str(found)) == (("demo_choice",), ("alpaca_eval", "demo_cloze"), "1 of 3")


def test_a_task_that_was_added_to_the_suite_is_missing(root, checkpoint, evaluate, suite):
    evaluate(*ALL)
    suite(SUITE.replace("demo_cloze: {}", "demo_cloze: {}, demo_arithmetic: {}"))
    found = progress(root, checkpoint)
    assert (found.missing, str(found)) == (("demo_arithmetic",), "4 of 5")


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (("num_fewshot: 0", "num_fewshot: 2"), ("demo_choice",)),
        (("judge: demo", "judge: gpt-4.1"), ("alpaca_eval",)),
    ],
)
def test_parts_with_changed_settings_are_missing(root, checkpoint, evaluate, suite, change, missing):
    evaluate(*ALL)
    suite(SUITE.replace(*change))
    assert progress(root, checkpoint).missing == missing


def test_another_profile_changes_nothing(root, checkpoint, evaluate, suite):
    evaluate(*ALL)
    suite(SUITE.replace("{}", "{profile: large}").replace("true", "false"))
    assert progress(root, checkpoint).complete


def test_a_task_that_was_removed_from_the_suite_does_not_count(root, checkpoint, evaluate, suite):
    evaluate("sample", "judge", "demo_choice", failed=["demo_cloze"])
    suite(SUITE.replace(", demo_cloze: {}", ""))
    assert str(progress(root, checkpoint)) == "complete"


def test_a_deleted_suite(root, checkpoint, evaluate, tmp_path):
    evaluate(*ALL)
    (tmp_path / "suites" / "own.yaml").unlink()
    assert str(progress(root, checkpoint)) == "complete"


def test_a_damaged_suite_is_reported(root, checkpoint, evaluate, tmp_path):
    evaluate(*ALL)
    (tmp_path / "suites" / "own.yaml").write_text("tasks: [")
    found = overview(root, [checkpoint])
    assert list(found.unreadable) == ["own"]
    assert str(found.progress["team/kto"]["own"]) == "complete"


def test_weights_that_came_after_the_plan(root, checkpoint, evaluate):
    evaluate(*ALL)
    again = checkpoint.model_copy(update={"registered": datetime.now(UTC) + timedelta(seconds=2)})
    found = progress(root, again)
    assert (found.outdated, found.complete, str(found)) == (True, False, "4 of 4, older weights")


def test_a_store_that_has_moved(root, checkpoint, evaluate, tmp_path):
    evaluate(*ALL)
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    assert str(progress(f"{tmp_path}/elsewhere/", checkpoint)) == "complete"


def test_a_damaged_plan_affects_only_its_own_cell(root, checkpoint, evaluate):
    evaluate(*ALL)
    filesystem.write_bytes(layout.plan_url(root, "demo", "team/kto"), b"{")
    found = overview(root, [checkpoint])
    assert found.suites == ("demo", "own")
    assert list(found.unreadable) == ["demo on team/kto"]
    assert found.progress["team/kto"].keys() == {"own"}


def test_of_hundreds_only_the_plans_are_read(root, checkpoint, evaluate, tmp_path, monkeypatch):
    evaluate(*ALL)
    plans, runs = tmp_path / "store" / "plans" / "own", tmp_path / "store" / "runs"
    checkpoints = [checkpoint]
    for number in range(500):
        name = f"kto-{number}"
        text = (plans / "team__kto.json").read_text().replace("team/kto", name).replace("team__kto", name)
        (plans / f"{name}.json").write_text(text)
        shutil.copytree(runs / "team__kto", runs / name, copy_function=shutil.copyfile)
        checkpoints.append(checkpoint.model_copy(update={"name": name}))
    read = []
    real = filesystem.read_bytes
    monkeypatch.setattr(filesystem, "read_bytes", lambda url: read.append(url) or real(url))
    found = overview(root, checkpoints)
    assert [str(found.progress[one.name]["own"]) for one in checkpoints] == ["complete"] * 501
    assert sorted(read) == sorted(layout.plan_url(root, "own", one.name) for one in checkpoints)
