"""Progress: what is current as suites, files, checkpoints and weights are now."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput
from halos_eval.planning.plan import make_plan, read_plan, save_plan
from halos_eval.planning.progress import overview
from halos_eval.shipped import shipped
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import write_manifest
from tests.doubles import finish, make_checkpoint, make_manifest, write_failure, write_safetensors

SUITE = """
enforce_eager: true
alpaca_eval: {prompts: demo, reference: demo, judge: demo}
tasks: {demo_choice: {num_fewshot: 0}, demo_cloze: {}}
"""
WITH_CACHE = """
pools: {gpu: 1, judge: 1}
profiles: {default: {gpus: 1}, cpu: {}}
kubernetes:
  namespace: halos
  images: {worker: w, judge: j}
  serviceAccountName: stage
  volumes: {cache: {mountPath: /cache, persistentVolumeClaim: cache}}
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
                finish(job)
            if job.title in failed:
                write_failure(layout.failure_beside(job.record))

    return evaluate


def planned(root, checkpoint):
    return make_plan(load_suite("own"), checkpoint, root, load_cluster())


def progress(root, checkpoint, *suites):
    found = overview(root, [checkpoint], load_cluster(), suites)
    assert found.unreadable == {}
    return found.progress[checkpoint.name].get("own")


def test_unavailable_parts_are_not_complete(root, checkpoint, suite, tmp_path, monkeypatch):
    (tmp_path / "cluster.yaml").write_text(WITH_CACHE)
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    own = load_suite("own")
    manifest = make_manifest(own, reasons={"demo_cloze": "it is gated"})
    write_manifest(layout.manifest_url(root, "own"), manifest)
    plan = make_plan(own, checkpoint, root, load_cluster(), manifest=manifest)
    save_plan(plan, own, root, manifest)
    for job in plan.jobs:
        finish(job)
    found = progress(root, checkpoint)
    assert (found.done, found.failed, found.missing) == (("sample", "judge", "demo_choice"), ("demo_cloze",), ())
    assert not found.complete


def test_nothing_was_ever_planned(root, checkpoint):
    assert overview(root, [checkpoint], load_cluster()) == ((), {"team/kto": {}}, {})
    assert overview(root, [checkpoint], load_cluster(), ["demo"]) == (("demo",), {"team/kto": {}}, {})


def test_an_unknown_suite(root, checkpoint):
    with pytest.raises(BadInput, match=r"unknown suite 'nothing', '\.\./own'; available: demo"):
        overview(root, [checkpoint], load_cluster(), ["nothing", "demo", "../own"])


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
    assert (found.done, found.missing, str(found)) == (("demo_choice",), ("sample", "judge", "demo_cloze"), "1 of 4")


def test_a_task_that_was_added_to_the_suite_is_missing(root, checkpoint, evaluate, suite):
    evaluate(*ALL)
    suite(SUITE.replace("demo_cloze: {}", "demo_cloze: {}, demo_arithmetic: {}"))
    found = progress(root, checkpoint)
    assert (found.missing, str(found)) == (("demo_arithmetic",), "4 of 5")


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (("num_fewshot: 0", "num_fewshot: 2"), ("demo_choice",)),
        (("judge: demo", "judge: gpt-4.1"), ("judge",)),
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


@pytest.mark.parametrize("damage", ["delete", "damage"])
def test_a_suite_that_cannot_be_read_is_reported(root, checkpoint, evaluate, tmp_path, damage):
    evaluate(*ALL)
    file = tmp_path / "suites" / "own.yaml"
    file.unlink() if damage == "delete" else file.write_text("tasks: [")
    found = overview(root, [checkpoint], load_cluster())
    assert list(found.unreadable) == ["own"]
    assert found.progress == {"team/kto": {}}


def test_weights_that_were_saved_again_under_the_same_registration(root, checkpoint, evaluate, tmp_path):
    evaluate(*ALL)
    write_safetensors(tmp_path / "kto" / "FINAL" / "model.safetensors", b"other   ")
    found = progress(root, checkpoint)
    assert (found.done, found.missing, str(found)) == ((), ALL, "0 of 4, other weights")
    evaluate()
    assert str(progress(root, checkpoint)) == "0 of 4"


def test_the_same_weights_saved_again_are_complete_once_they_are_read(root, checkpoint, evaluate, tmp_path):
    evaluate(*ALL)
    write_safetensors(tmp_path / "kto" / "FINAL" / "model.safetensors")
    assert str(progress(root, checkpoint)) == "0 of 4, other weights"
    evaluate()
    assert progress(root, checkpoint).complete


def test_outputs_that_were_sampled_again_are_not_judged(root, checkpoint, evaluate):
    evaluate(*ALL)
    sample = next(job for job in planned(root, checkpoint).jobs if job.title == "sample")
    finish(sample, files={"outputs.json": "other"})
    assert progress(root, checkpoint).missing == ("judge",)


def test_a_judge_that_one_run_used_instead_changes_nothing(root, checkpoint, evaluate):
    evaluate(*ALL)
    own = load_suite("own")
    trial = make_plan(own, checkpoint, root, load_cluster(), judge="gpt-4.1-mini")
    save_plan(trial, own, root)
    for job in trial.jobs:
        finish(job)
    kept = read_plan(layout.plan_url(root, "own", "team/kto"))
    assert [job.judge for job in kept.jobs if job.stage == "judge"] == ["demo"]
    assert [job.judge for job in kept.trials] == ["gpt-4.1-mini"]
    assert progress(root, checkpoint).complete


def test_new_tools_begin_a_series_and_outdate_nothing(root, checkpoint, evaluate, monkeypatch):
    evaluate(*ALL)
    monkeypatch.setattr("halos_eval.stages.tools.pinned", lambda package: "9.9")
    found = progress(root, checkpoint)
    assert (found.complete, found.series) == (True, 1)
    newest = overview(root, [checkpoint], load_cluster(), newest=True).progress["team/kto"]["own"]
    assert (newest.missing, newest.series) == (ALL, None)
    evaluate("demo_choice")
    assert progress(root, checkpoint).series == 1  # it is complete there
    evaluate(*ALL)
    assert progress(root, checkpoint).series == 2
    newest = overview(root, [checkpoint], load_cluster(), newest=True).progress["team/kto"]["own"]
    assert newest.complete


def test_a_store_that_has_moved(root, checkpoint, evaluate, tmp_path):
    evaluate(*ALL)
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    assert str(progress(f"{tmp_path}/elsewhere/", checkpoint)) == "complete"


def test_of_hundreds_neither_weights_nor_plans_are_read(root, checkpoint, evaluate, tmp_path, monkeypatch):
    evaluate(*ALL)
    store = tmp_path / "store"
    checkpoints = [checkpoint]
    for number in range(500):
        name = f"kto-{number}"
        for kind in ("plans/own", "weights"):
            shutil.copyfile(store / kind / "team__kto.json", store / kind / f"{name}.json")
        shutil.copytree(store / "runs" / "team__kto", store / "runs" / name, copy_function=shutil.copyfile)
        checkpoints.append(checkpoint.model_copy(update={"name": name}))
    read = []
    real = filesystem.read_bytes
    monkeypatch.setattr(filesystem, "read_bytes", lambda url: read.append(url) or real(url))
    found = overview(root, checkpoints, load_cluster())
    assert [str(found.progress[one.name]["own"]) for one in checkpoints] == ["complete"] * 501
    kinds = Counter(url.removeprefix(root).split("/")[1] for url in read)
    assert kinds == {"series.json": 1, "manifests": 1, "weights": 501, "runs": 2 * 501}  # records of sample and judge


class Lab:
    """A suite, its files and a checkpoint, in a folder of its own; every part can be edited."""

    def __init__(self, folder):
        self.folder = folder
        self.values = dict.fromkeys(PARTS, 0)
        for name in self.values:
            self.edit(name, 0)

    def edit(self, name, value):
        """Write the file, or the setting, that stands for the value of a part."""
        self.values[name] = value
        folder = self.folder
        if name == "judge":
            text = filesystem.read_bytes(str(shipped("judges") / "demo.yaml")).decode()
            (folder / "judge.yaml").write_text(text.replace("max_tokens: 1", f"max_tokens: {value + 1}"))
        elif name == "prompts":
            (folder / "prompts.json").write_text(json.dumps([{"instruction": f"Say {value}", "output": "yes"}]))
        elif name == "task":
            (folder / "tasks").mkdir(exist_ok=True)
            (folder / "tasks" / "mine.yaml").write_text(f"task: mine\nmetadata: {{version: {value}}}\n")
        elif name == "template":
            (folder / "own.jinja").write_text(f"{value}: {{{{ messages }}}}")
        elif name == "weights":
            make_checkpoint(folder / "kto")
            write_safetensors(folder / "kto" / "model.safetensors", bytes(8 * [value]))
        (folder / "own.yaml").write_text(
            "alpaca_eval: {prompts: prompts.json, reference: prompts.json, judge: judge.yaml}\n"
            f"include_path: tasks\ntasks: {{demo_cloze: {{num_fewshot: {self.values['shots']}}}}}\n"
        )

    @property
    def checkpoint(self):
        metadata = Metadata(chat_template=str(self.folder / "own.jinja"), stop=(str(self.values["stop"]),))
        return Checkpoint(name="kto", location=str(self.folder / "kto"), metadata=metadata)

    def state(self, title):
        """The values on which a stage depends."""
        names = {
            "sample": ("prompts", "template", "stop", "weights"),
            "judge": ("prompts", "template", "stop", "weights", "judge"),
            "demo_cloze": ("shots", "task", "weights"),
        }[title]
        return title, *(self.values[name] for name in names)


PARTS = ("shots", "judge", "prompts", "task", "template", "stop", "weights")
EDITS = st.tuples(st.sampled_from(PARTS), st.integers(0, 1))


@settings(max_examples=25)
@given(steps=st.lists(st.one_of(EDITS, st.sampled_from(["evaluate", "evaluate demo_cloze"])), max_size=12))
def test_current_is_what_was_evaluated_as_everything_is_now(steps):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        lab, root, evaluated = Lab(Path(folder)), f"file://{folder}/store", set()
        patch.setenv("HALOS_EVAL_SUITES", folder)
        for step in [*steps, "plan"]:
            if isinstance(step, tuple):
                lab.edit(*step)
                continue
            own = load_suite(f"{folder}/own.yaml")
            plan = make_plan(own.keep(step.split()[1:]), lab.checkpoint, root, load_cluster())
            save_plan(plan, own, root)
            for job in plan.jobs if step != "plan" else ():
                finish(job)
                evaluated.add(lab.state(job.title))
        expected = tuple(title for title in ("sample", "judge", "demo_cloze") if lab.state(title) in evaluated)
        found = overview(root, [lab.checkpoint], load_cluster()).progress["kto"]["own"]
        again = make_plan(load_suite(f"{folder}/own.yaml"), lab.checkpoint, root, load_cluster())
        assert found.done == expected == tuple(job.title for job in again.jobs if job.done)
