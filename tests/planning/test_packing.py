"""Which stages share a pod: properties of the packer, and the reasons in a suite."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import Suite, load_suite
from halos_eval.planning.expected import Expected, packing_of
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.packing import ENOUGH, Candidate, EngineKey, Packing, packed
from halos_eval.planning.packs import packing_of_jobs, packs_of
from halos_eval.planning.plan import make_plan
from halos_eval.stages.options import LONGEST_ARGUMENT
from tests.doubles import make_checkpoint

NEW = Checkpoint(name="new", location="/new")
ENGINES = st.builds(EngineKey, st.sampled_from(["default", "large"]), st.just("auto"), st.sampled_from([None, 4096]))
WORK = st.none() | st.floats(0, 5000)
CANDIDATES = st.lists(st.tuples(st.none() | ENGINES, WORK, st.floats(1, 300)), max_size=15).map(
    lambda found: [Candidate(f"task{number}", *one) for number, one in enumerate(found)]
)


@given(CANDIDATES)
def test_every_stage_is_in_one_pod_with_one_engine(candidates):
    packing = packed(candidates)
    titles = [title for pack in packing.packs for title in pack]
    assert len(titles) == len(set(titles))
    assert set(packing.why) == {one.title for one in candidates}
    named = {one.title: one for one in candidates}
    for pack in packing.packs:
        assert len(pack) > 1
        assert len({named[title].engine for title in pack}) == 1
        assert all(named[title].engine is not None and named[title].work is not None for title in pack)
        assert list(pack) == sorted(pack, key=lambda title: int(title.removeprefix("task")))
    for one in candidates:
        shares = packing.why[one.title].startswith("shares a pod with ")
        assert shares == (packing.pack_of(one.title) is not None)


@given(CANDIDATES)
def test_long_stages_keep_a_pod_of_their_own(candidates):
    packing = packed(candidates)
    for one in candidates:
        if one.work is not None and one.work >= ENOUGH * one.load:
            assert packing.pack_of(one.title) is None


def test_short_stages_fill_as_many_pods_as_have_enough_work():
    engine = EngineKey("default", "auto", None, reproducible=False)
    work = {"a": 500, "b": 400, "c": 300, "d": 200, "e": 100}
    candidates = [Candidate(title, engine, seconds, 100) for title, seconds in work.items()]
    assert packed(candidates).packs == (("a", "d", "e"), ("b", "c"))


def suite(**settings):
    tasks = {"arc_easy": {}, "winogrande": {}}
    return Suite.model_validate({"name": "own", "packing": "auto", "tasks": tasks} | settings)


def test_a_task_with_a_length_of_its_own_cannot_share():
    own = suite(tasks={"arc_easy": {}, "winogrande": {}, "boolq": {"max_model_len": 512}})
    packing = packing_of(own, NEW, own.tasks)
    assert packing.packs == (("arc_easy", "winogrande"),)
    assert packing.why == {
        "arc_easy": "shares a pod with winogrande",
        "winogrande": "shares a pod with arc_easy",
        "boolq": "a pod of its own: no other short stage has its engine settings (profile default, dtype auto, "
        "max_model_len 512)",
    }


def test_transformers_and_unknown_tasks_cannot_share():
    own = suite(tasks={"arc_easy": {"backend": "hf"}, "ours": {}, "boolq": {}})
    why = packing_of(own, NEW, own.tasks).why
    assert why["arc_easy"] == "a pod of its own: the backend hf shares no model"
    assert why["ours"] == "a pod of its own: its work is unknown until it has a record"


def test_records_say_how_long_a_task_takes():
    expected = Expected({("arc_easy", "default"): 3600.0, ("ours", "default"): 5.0}, {"default": 60.0})
    own = suite(tasks={"arc_easy": {}, "ours": {}, "boolq": {}})
    packing = packing_of(own, NEW, own.tasks, expected)
    assert packing.packs == (("ours", "boolq"),)
    assert packing.why["arc_easy"] == "a pod of its own: about 60 min of work for 1.0 min of loading"


def test_without_packing_each_stage_has_its_pod():
    assert packing_of(suite(packing="none"), NEW, ["arc_easy", "winogrande"]).packs == ()


def test_the_demo_samples_and_runs_its_tasks_in_one_pod():
    demo = load_suite("demo")
    assert packing_of(demo, NEW, ["sample", *demo.tasks]).packs == (("sample", *demo.tasks),)


NAMES = ["mmlu_high_school_european_history", *(f"mmlu_high_school_subject_{number}" for number in range(50))]


@pytest.mark.parametrize(
    ("count", "title"),
    [
        (2, "mmlu_high_school_european_history + mmlu_high_school_subject_0"),
        (
            51,
            "mmlu_high_school_european_history + mmlu_high_school_subject_0 + mmlu_high_school_subject_1 + "
            "mmlu_high_school_subject_2 + mmlu_high_school_subject_3 + mmlu_high_school_subject_4 and 45 more",
        ),
    ],
)
def test_the_name_of_a_pack_fits_in_airflows_column_and_in_the_name_of_a_file(count, title):
    assert name_of_pack(NAMES[:count]) == title


@given(st.lists(st.text("a", min_size=1, max_size=200), min_size=2, max_size=99))
def test_whatever_the_tasks_are_called(names):
    own = suite(tasks={name: {} for name in names})  # no name is longer in a suite
    assert len(name_of_pack([*own.tasks])) <= 250


def name_of_pack(names):
    """Return the name of the task instance that runs these tasks."""
    jobs = [
        PlannedJob(stage="harness", task=name, image="worker", argv=("harness",), profile="default", fingerprint="f",
                   record="r", done=False, why="")
        for name in names
    ]  # fmt: skip
    (pack,) = packs_of(jobs, Packing((tuple(names),), {}), datetime.now(UTC), force=False).jobs
    return pack.title


@pytest.fixture
def instructed(tmp_path):
    """``instructed(text)``: the packing and the packs of the demo's tasks with that system instruction."""
    location = str(make_checkpoint(tmp_path / "kto"))

    def instructed(text):
        settings = {"apply_chat_template": True, "system_instruction": text}
        own = suite(tasks={"demo_choice": settings, "demo_cloze": settings})
        checkpoint = Checkpoint(name="kto", location=location)
        jobs = make_plan(own, checkpoint, str(tmp_path), load_cluster()).jobs
        packing = packing_of_jobs(own, checkpoint, jobs)
        return packing, packs_of(jobs, packing, datetime.now(UTC), force=False).jobs

    return instructed


def test_a_pack_has_the_words_of_its_stages_in_as_few_bytes(instructed):
    packing, (pack,) = instructed("这" * 15_000)
    assert packing.packs == (("demo_choice", "demo_cloze"),)
    assert [f"--system-instruction={'这' * 15_000}" in words for words in json.loads(pack.argv[-1])] == [True, True]
    assert len(pack.argv[-1].encode()) < LONGEST_ARGUMENT


def test_stages_whose_commands_are_too_long_together_have_pods_of_their_own(instructed):
    packing, jobs = instructed("x" * 70_000)
    assert (packing.packs, jobs) == ((), ())
    for why in packing.why.values():
        assert why.startswith("a pod of its own: the commands of demo_choice + demo_cloze together have 14")
        assert why.endswith("bytes; Linux takes 131071 in one argument")
