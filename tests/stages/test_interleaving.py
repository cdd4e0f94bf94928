"""Any interleaving of the store's operations of two runs gives what one run after the other would give."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.digests import digest_bytes
from halos_eval.planning.plan import make_plan, read_plan, save_plan
from halos_eval.stages import provenance
from halos_eval.stages.identity import Job
from halos_eval.stages.judge.outputs import find_outputs
from halos_eval.stages.options import StageConfig
from halos_eval.stages.run import Outcome, run
from halos_eval.storage import claims, filesystem, layout, result_files
from halos_eval.storage.claims import Busy
from halos_eval.storage.records import CheckpointRef, read_failure, read_record
from halos_eval.storage.series import read_series, save_series
from tests.doubles import COVERAGE, USAGE, make_checkpoint
from tests.doubles.interleaving import interleaved

ORDER = st.lists(st.sampled_from([0, 1]), max_size=60)
quietly = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def job(root, monkeypatch):
    for slow in ("packages", "hardware", "commit"):
        found = getattr(provenance, slow)()
        monkeypatch.setattr(provenance, slow, lambda found=found: found)
    checkpoint = CheckpointRef(name="kto", location="/kto", digest="d")
    record = f"{root}/outputs.record.json"
    return Job(stage="sample", checkpoint=checkpoint, settings={}, inputs={"model": "d"}, packages=(), record=record)


@pytest.fixture
def owners(monkeypatch):
    """Each thread is a process of its own."""
    for module in ("planning.plan", "storage.series"):
        monkeypatch.setattr(f"halos_eval.{module}.this_process", lambda: f"thread {threading.get_ident()}")


def stage(job, number, made, force=False):
    """A run that samples its own answers, as no two samplings are equal."""
    folder = job.record.rpartition("/")[0]

    def work():
        made.append(number)
        files = result_files.write(folder, {"outputs.json": b"answers of %d" % number})
        return Outcome(coverage=COVERAGE, usage=USAGE, files=files, details={"run": number}, parts=f"{folder}/parts")

    return lambda: run(job, StageConfig(owner=f"run {number}", force=force), work)


def recorded(job):
    """The number of the run whose record is in the store; its files are as it wrote them."""
    record = read_record(job.record)
    ((name, digest),) = record.files.items()
    data = filesystem.read_bytes(f"{job.record.rpartition('/')[0]}/{name}")
    assert digest_bytes(data) == digest
    assert data == b"answers of %d" % record.details["run"]
    assert read_failure(layout.failure_beside(job.record)) is None
    return record.details["run"]


@quietly
@given(order=ORDER)
def test_of_two_runs_of_a_stage_one_does_the_work(root, job, order):
    filesystem.delete(root)
    made = []
    found = interleaved(order, *(stage(job, number, made) for number in (0, 1)))
    (winner,) = made
    assert recorded(job) == winner
    assert found[winner] == read_record(job.record)
    assert isinstance(found[1 - winner], Busy) or found[1 - winner] == found[winner]
    assert sorted(filesystem.entries(root)) == sorted([*found[winner].files, "outputs.record.json"])


@quietly
@given(order=ORDER, force=st.booleans())
def test_runs_that_overtake_each_other_leave_a_record_with_its_own_files(root, job, order, force):
    """Each lease expires at once, as if both runs were paused for long, or the store had no conditional writes."""
    filesystem.delete(root)
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims.take, "__defaults__", (timedelta(seconds=-1),))
        found = interleaved(order, *(stage(job, number, made, force) for number in (0, 1)))
    assert recorded(job) in made
    assert any(one == read_record(job.record) for one in found)


@quietly
@given(order=ORDER)
def test_the_judge_finds_outputs_with_their_record_whenever_they_are_sampled_again(root, job, order):
    filesystem.delete(root)
    first = stage(job, 0, [])()
    (_, data, sampled), _ = interleaved(order, lambda: find_outputs(job.record), stage(job, 1, [], force=True))
    assert data == b"answers of %d" % sampled.details["run"]
    assert recorded(job) == 1
    assert first != read_record(job.record)


@settings(quietly, max_examples=15)
@given(order=ORDER)
def test_plans_of_different_parts_become_one(root, suite, tmp_path, owners, order):
    suite("tasks: {demo_choice: {}, demo_cloze: {}, demo_arithmetic: {}}")
    whole = load_suite("own")
    checkpoint = Checkpoint(name="team/kto", location=str(make_checkpoint(tmp_path / "kto")))
    filesystem.delete(root)
    parts = ["demo_choice"], ["demo_cloze"]
    plans = [make_plan(whole.keep(part), checkpoint, root, load_cluster()) for part in parts]
    found = interleaved(order, *(lambda plan=plan: save_plan(plan, whole, root) for plan in plans))
    assert found == [None, None]
    saved = read_plan(layout.plan_url(root, "own", "team/kto"))
    assert [job.part for job in saved.jobs] == ["demo_choice", "demo_cloze"]
    assert saved.left_out == ("demo_arithmetic",)
    assert list(filesystem.entries(f"{root}/plans/own")) == ["team__kto.json"]


@quietly
@given(order=ORDER)
def test_series_that_begin_at_once_have_numbers_of_their_own(root, owners, order):
    filesystem.delete(root)
    tools = [{"vllm": "1"}, {"vllm": "2"}]
    assert interleaved(order, *(lambda one=one: save_series(root, one) for one in tools)) == [None, None]
    found = read_series(root).series
    assert [one.number for one in found] == [1, 2]
    assert sorted(one.tools["vllm"] for one in found) == ["1", "2"]
