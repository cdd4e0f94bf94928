"""Pruning: only what nobody reads is removed, whoever works meanwhile and whenever it is interrupted."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import example, given, settings, target
from hypothesis import strategies as st

from halos_eval.checkpoints.registry import Checkpoint, Listing
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.digests import digest_bytes
from halos_eval.errors import StoreError
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.planning.progress import overview
from halos_eval.planning.prune import Pruner, Retention
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.reports.table import read_rows
from halos_eval.storage import filesystem, layout, result_files
from halos_eval.storage.claims import Busy, Claim, this_process
from halos_eval.storage.records import read_model, read_record, write_model
from tests.doubles import NOW, finish, make_checkpoint, make_provenance, write_failure, write_safetensors
from tests.planning.test_progress import EDITS, Lab
from tests.reports.pandas_table import frame

SUITE = """
alpaca_eval: {prompts: demo, reference: demo, judge: demo}
tasks: {demo_choice: {num_fewshot: 0}, demo_cloze: {}}
"""
NAME = "team/kto"
ALWAYS = datetime(2100, 1, 1, tzinfo=UTC)
"""A threshold for which everything is old enough."""


class Store:
    """A store with one checkpoint, whose suite can be changed and evaluated again."""

    def __init__(self, root, folder, suite):
        self.root, self.suite, self.day = root, suite, 0
        self.checkpoint = Checkpoint(name=NAME, location=str(make_checkpoint(folder / "kto" / "FINAL")))
        self.listing = Listing([self.checkpoint], {})

    def evaluate(self, shots=0, **options):
        """Evaluate the suite with other examples; return the jobs by title."""
        own = self.suite(SUITE.replace("num_fewshot: 0", f"num_fewshot: {shots}"))
        plan = make_plan(own, self.checkpoint, self.root, load_cluster(), **options)
        save_plan(plan, own, self.root)
        self.day += 1
        for job in plan.jobs:
            write_result(job, NOW + timedelta(days=self.day))
        return {job.title: job for job in plan.jobs}

    def pruner(self, before=ALWAYS, listing=None, **rules):
        return Pruner(self.root, listing or self.listing, load_cluster(), Retention(before, **rules))

    def found(self, *args, **rules):
        """What can be removed, as paths in the store, and why other results stay."""
        one = self.pruner(*args, **rules).find(NAME)
        return [removal.url.removeprefix(f"{self.root}/") for removal in one.removals], one.kept

    def prune(self, *args, **rules):
        pruner = self.pruner(*args, **rules)
        return pruner.remove(NAME, pruner.find(NAME))

    def files(self):
        store = Path(self.root.removeprefix("file://"))
        return {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}


def write_result(job, ended=NOW):
    """Write the record of a job and the file that it names."""
    plain = {"sample": "outputs.json", "judge": "annotations.json", "harness": "results.json"}[job.stage]
    files = result_files.write(job.record.rpartition("/")[0], {plain: b"content"})
    judged = {"outputs_sha256": digest_bytes(b"content")} if job.stage == "judge" else {}
    finish(job, ended, files=files, provenance=make_provenance(ended, **judged))


def folder(job):
    """The folder of a job's results in the store."""
    return "runs/" + job.record.rpartition("/runs/")[2].rpartition("/")[0]


def whole(root):
    """Assert that all files exist that records name."""
    for url in filesystem.find(f"{root}/runs", layout.RECORD):
        for name in read_record(url).files:
            assert filesystem.exists(filesystem.join(url.rpartition("/")[0], name))


@pytest.fixture
def lab(root, tmp_path, suite):
    return Store(root, tmp_path, suite)


def test_a_result_of_an_old_definition_is_removed(lab):
    old, new = lab.evaluate(shots=5), lab.evaluate(shots=0)
    assert lab.found() == ([folder(old["demo_choice"])], "")
    (removed,) = lab.prune().removals
    assert removed.reason == "result of 2026-01-03 that no suite defines any more"
    assert removed.size > len(b"content")
    assert not filesystem.exists(f"{lab.root}/{folder(old['demo_choice'])}")
    assert all(read_record(job.record) for job in new.values())
    assert lab.found() == ([], "")
    assert not any(file.startswith("claims/") for file in lab.files())


def test_nothing_is_removed_without_remove(lab):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    before = lab.files()
    pruner = lab.pruner()
    assert len(pruner.survey(pruner.checkpoints())[NAME].removals) == 1
    assert lab.files() == before


def test_object_storage(lab):
    lab.root = f"memory://{uuid4()}"
    old, new = lab.evaluate(shots=5), lab.evaluate(shots=0)
    filesystem.write_bytes(
        f"{folder(new['sample'])}/outputs.parts/f/1.jsonl".replace("runs", f"{lab.root}/runs", 1), b""
    )
    removed = [removal.url for removal in lab.prune().removals]
    assert [url.partition("/runs/")[2].split("/")[1] for url in removed] == ["harness.demo_choice", "sample"]
    assert not filesystem.exists(old["demo_choice"].record)
    assert all(read_record(job.record) for job in new.values())
    assert lab.found() == ([], "")
    whole(lab.root)
    filesystem.delete(lab.root)


def test_the_newest_results_stay(lab):
    one, two, three, _ = [lab.evaluate(shots=shots) for shots in (1, 2, 3, 0)]
    jobs = [folder(each["demo_choice"]) for each in (one, two, three)]
    assert lab.found(keep=3) == ([jobs[0]], "")
    assert sorted(lab.found(keep=1)[0]) == sorted(jobs)
    assert lab.found(keep=4) == ([], "")


def test_the_newest_result_stays_even_if_it_is_not_current(lab):
    lab.evaluate(shots=5)
    own = lab.suite(SUITE)
    save_plan(make_plan(own, lab.checkpoint, lab.root, load_cluster()), own, lab.root)
    assert lab.found() == ([], "")


def test_younger_results_stay(lab):
    old, _ = lab.evaluate(shots=5), lab.evaluate(shots=0)
    assert lab.found(datetime.now(UTC) - timedelta(days=30)) == ([], "")
    for path in Path(lab.root.removeprefix("file://"), folder(old["demo_choice"])).iterdir():
        os.utime(path, (0, 0))
    assert lab.found(datetime.now(UTC) - timedelta(days=30)) == ([folder(old["demo_choice"])], "")


def test_results_of_all_series_stay(lab, monkeypatch):
    lab.evaluate()
    monkeypatch.setattr("halos_eval.stages.tools.pinned", lambda package: "9.9")
    lab.evaluate()
    assert lab.found() == ([], "")


def test_a_damaged_list_of_series_stops_everything(lab):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    filesystem.write_bytes(layout.series_url(lab.root), b"{")
    with pytest.raises(StoreError, match=r"series\.json"):
        lab.pruner()


def test_a_trial_of_another_judge_stays(lab):
    lab.evaluate()
    trial = lab.evaluate(judge="gpt-4.1-mini")["judge"]
    lab.evaluate(shots=0)
    assert lab.found() == ([], "")
    assert read_record(trial.record)


def test_outputs_stay_as_long_as_their_judgement(lab):
    first = lab.evaluate()
    own = lab.suite(SUITE.replace("judge: demo", "judge: demo, sampling: {max_tokens: 7}"))
    plan = make_plan(own, lab.checkpoint, lab.root, load_cluster())
    save_plan(plan, own, lab.root)
    write_result(next(job for job in plan.jobs if job.stage == "sample"), NOW + timedelta(days=9))
    assert lab.found() == ([], "")  # the old judgement is the newest, so the table shows it
    write_result(next(job for job in plan.jobs if job.stage == "judge"), NOW + timedelta(days=9))
    assert lab.found() == ([folder(first["judge"]), folder(first["sample"])], "")


def test_a_failure_of_an_old_definition_is_removed_and_that_of_the_current_one_stays(lab):
    old, new = lab.evaluate(shots=5)["demo_choice"], lab.evaluate(shots=0)["demo_choice"]
    for job in (old, new):
        filesystem.delete(f"{lab.root}/{folder(job)}")
        write_failure(layout.failure_beside(job.record))
    assert lab.found() == ([folder(old)], "")


def test_a_record_that_this_version_cannot_read_stays(lab):
    old, _ = lab.evaluate(shots=5)["demo_choice"], lab.evaluate(shots=0)
    filesystem.write_bytes(old.record, b'{"version": 99}')
    assert lab.found() == ([], "")


def test_other_weights_keep_everything(lab):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    write_safetensors(Path(lab.checkpoint.location) / "model.safetensors", b"other   ")
    assert lab.found() == ([], "its weights are not those of the latest plan: plan or evaluate it, then run this again")


def test_an_unreadable_suite_keeps_everything(lab, tmp_path):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    (tmp_path / "suites" / "own.yaml").write_text("tasks: [")
    removals, kept = lab.found()
    assert (removals, kept.startswith("suite own is unreadable")) == ([], True)


def test_of_a_suite_that_is_gone_the_results_of_the_latest_plans_stay(lab, tmp_path):
    old, _ = lab.evaluate(shots=5)["demo_choice"], lab.evaluate(shots=0)
    (tmp_path / "suites" / "own.yaml").unlink()
    assert lab.found() == ([folder(old)], "")


def test_a_damaged_plan_keeps_everything(lab):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    filesystem.write_bytes(layout.plan_url(lab.root, "own", NAME), b"{}")
    removals, kept = lab.found()
    assert (removals, "is not a valid plan" in kept) == ([], True)


@pytest.mark.parametrize(
    ("owner", "until", "released", "protects"),
    [
        ("run a of b", timedelta(hours=1), False, True),
        ("run a of b", timedelta(hours=1), True, False),
        ("run a of b", timedelta(days=-3), False, True),  # a run may be longer than its lease
        ("run a of b", timedelta(days=-40), False, False),
        ("process 1 on another", timedelta(minutes=1), False, True),
        ("process 1 on another", timedelta(minutes=-1), False, False),  # a prune that was killed
    ],
)
def test_an_open_turn_protects_its_checkpoint(lab, owner, until, released, protects):
    old, _ = lab.evaluate(shots=5)["demo_choice"], lab.evaluate(shots=0)
    for path in Path(lab.root.removeprefix("file://"), "runs").rglob("*"):
        os.utime(path, (0, 0))
    turn = layout.turn_url(lab.root, "own", NAME)
    write_model(f"{turn}/000001.json", Claim(owner=owner, until=datetime.now(UTC) + until, released=released))
    month_ago = datetime.now(UTC) - timedelta(days=30)
    expected = ([], f"{owner} is at work") if protects else ([folder(old)], "")
    assert lab.found(month_ago) == expected
    found = lab.pruner(month_ago).find(NAME)
    assert found.busy == protects
    assert len(lab.prune(month_ago).removals) == (0 if protects else 1)
    assert filesystem.exists(old.record) == protects


def test_a_run_that_began_after_the_survey_protects_its_checkpoint(lab):
    old, _ = lab.evaluate(shots=5)["demo_choice"], lab.evaluate(shots=0)
    pruner = lab.pruner()
    found = pruner.find(NAME)
    turn = layout.turn_url(lab.root, "own", NAME)
    write_model(f"{turn}/000001.json", Claim(owner="run a of b", until=ALWAYS))
    removed = pruner.remove(NAME, found)
    assert (removed.removals, removed.busy) == ((), True)
    assert "run a of b does this work" in removed.kept
    assert read_record(old.record)
    assert filesystem.exists(f"{turn}/000001.json")


def test_a_running_command_protects_its_checkpoint(lab):
    _, new = lab.evaluate(shots=5), lab.evaluate(shots=0)
    claim = f"{layout.claims_beside(new['sample'].record)}/000001.json"
    write_model(claim, Claim(owner="process 1 on another", until=datetime.now(UTC) + timedelta(minutes=4)))
    assert lab.found() == ([], "process 1 on another is at work")


def test_while_it_removes_no_run_begins(lab, monkeypatch):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    turn = f"{layout.turn_url(lab.root, 'own', NAME)}/000001.json"
    held = []
    real = filesystem.delete

    def look(url):
        held.append((result_files.plain_name(url.rpartition("/")[2]), read_model(turn, Claim).owner))
        real(url)

    monkeypatch.setattr("halos_eval.planning.prune.filesystem.delete", look)
    lab.prune()
    assert held == [(name, this_process()) for name in ("record.json", "results.json")]
    assert not filesystem.exists(turn)


def test_what_changed_after_the_survey_stays(lab):
    old, _ = lab.evaluate(shots=5)["demo_choice"], lab.evaluate(shots=0)
    for path in Path(lab.root.removeprefix("file://"), folder(old)).iterdir():
        os.utime(path, (0, 0))
    month_ago = datetime.now(UTC) - timedelta(days=30)
    (removal,) = lab.pruner(month_ago).find(NAME).removals
    write_result(old)
    with pytest.raises(Busy, match="was changed just now"):
        removal.remove(month_ago)
    assert read_record(old.record)


def test_journals_and_claims_of_ended_runs_are_removed(lab):
    jobs = lab.evaluate()
    journals = [f"{folder(jobs['sample'])}/outputs.parts", f"{folder(jobs['demo_cloze'])}/parts"]
    for journal in journals:
        filesystem.write_bytes(f"{lab.root}/{journal}/f/1.jsonl", b"{}")
    ended = Claim(owner="process 1 on another", until=NOW)
    claims = [f"{folder(jobs['sample'])}/outputs.claims", "claims/own/team__kto"]
    for claim in claims:
        write_model(f"{lab.root}/{claim}/000001.json", ended)
    assert lab.found(datetime.now(UTC) - timedelta(days=1)) == ([], "")
    before = lab.files()
    assert sorted(lab.found()[0]) == sorted([*journals, *claims])
    assert len(lab.prune().removals) == 4
    assert before - lab.files() == {
        *(f"{one}/f/1.jsonl" for one in journals),
        *(f"{one}/000001.json" for one in claims),
    }
    assert lab.found() == ([], "")


def test_result_files_that_no_record_names_are_removed(lab):
    job = lab.evaluate()["sample"]
    home = f"{lab.root}/{folder(job)}"
    older = read_record(job.record).files
    finish(job, files=result_files.write(home, {"outputs.json": b"newer"}))
    assert lab.found(datetime.now(UTC) - timedelta(days=1)) == ([], "")
    before = lab.files()
    (removed,) = lab.prune().removals
    assert removed.reason == "results of another run, which no record names"
    assert before - lab.files() == {f"{folder(job)}/{name}" for name in older}
    whole(lab.root)
    assert lab.found() == ([], "")


@pytest.mark.parametrize("record", [None, b"{"])
def test_result_files_without_a_record_are_removed_but_not_those_of_an_unreadable_one(lab, record):
    job = lab.evaluate()["sample"]
    filesystem.delete(f"{lab.root}/{folder(job)}")
    if record:
        filesystem.write_bytes(job.record, record)
    for data in (b"one", b"two"):
        result_files.write(f"{lab.root}/{folder(job)}", {"outputs.json": data})
    before = lab.files()
    lab.prune()
    assert len(before - lab.files()) == (0 if record else 2)


@pytest.mark.parametrize("scored", [True, False])
def test_answers_that_are_scored_later_are_not_removed(lab, scored):
    job = lab.evaluate()["demo_choice"]
    home = f"{lab.root}/{folder(job)}"
    generated = read_record(job.record)
    if not scored:
        filesystem.delete(job.record)
    answers = result_files.write(home, {"answers.json.gz": b"newer"})
    result_files.write(home, {"answers.json.gz": b"older"})
    write_model(f"{home}/{layout.GENERATED}", generated.model_copy(update={"files": answers}))
    lab.prune()
    left = {name for name in lab.files() if "answers" in name}
    assert left == {f"{folder(job)}/{name}" for name in answers}


def test_a_deleted_checkpoint_stays_until_somebody_says_so(lab):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    filesystem.write_bytes(layout.copy_url(lab.root, NAME), b"{}")
    gone = Listing([lab.checkpoint.model_copy(update={"name": "other"})], {})
    kept = "not in the registry: its results stay without --deleted-checkpoints"
    assert lab.found(listing=gone) == ([], kept)
    month_ago = datetime.now(UTC) - timedelta(days=30)
    lately = "not in the registry, but changed lately"
    assert lab.found(month_ago, listing=gone, deleted_checkpoints=True) == ([], lately)
    lab.prune(listing=gone, deleted_checkpoints=True)
    notes = {name for name in lab.files() if name.startswith("reports/own/changes/")}  # for the next summary
    assert lab.files() - notes == {"series.json", "suites/own.json"}
    assert lab.pruner().checkpoints() == []


def test_the_row_of_a_deleted_checkpoint_goes_with_its_plan(lab):
    def summary(name):
        output = layout.report_url(lab.root, "own")
        config = SummarizeConfig(root=lab.root, suite="own", checkpoint=name, output=output)
        return [row.checkpoint for row in summarize(config)]

    lab.evaluate()
    other = lab.checkpoint.model_copy(update={"name": "other"})
    own = load_suite("own")
    save_plan(make_plan(own, other, lab.root, load_cluster()), own, lab.root)
    assert summary(NAME) == [NAME, "other"]
    lab.prune(listing=Listing([other], {}), deleted_checkpoints=True)
    assert summary("other") == ["other"]


def test_a_checkpoint_that_the_registry_skips_is_not_deleted(lab):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    skipped = Listing([], {NAME: "a shard is missing"})
    assert lab.found(listing=skipped, deleted_checkpoints=True) == ([], "skipped by the registry: a shard is missing")


@pytest.mark.parametrize("linked", ["runs", "runs/team__kto", "claims"])
def test_links_out_of_the_store_are_not_followed(lab, tmp_path, linked):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    place = tmp_path / "store" / linked
    (tmp_path / "store" / "claims" / "own").mkdir(parents=True)
    outside = tmp_path / "outside"
    place.rename(outside)
    place.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    removals, kept = lab.found(deleted_checkpoints=True)
    assert (removals, "links are not followed" in kept) == ([], True)
    assert sorted(outside.rglob("*")) == before


def test_a_link_in_a_folder_of_results_is_removed_and_its_target_stays(lab, tmp_path):
    old, _ = lab.evaluate(shots=5)["demo_choice"], lab.evaluate(shots=0)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("mine")
    links = Path(lab.root.removeprefix("file://"), folder(old))
    (links / "samples").symlink_to(tmp_path / "outside")
    (links / "broken").symlink_to("nothing")
    lab.prune()
    assert not links.exists()
    assert (tmp_path / "outside" / "file").read_text() == "mine"


def test_files_of_others_stay(lab):
    lab.evaluate(shots=5)
    lab.evaluate(shots=0)
    others = {
        "runs/team__kto/notes.txt",
        "runs/team__kto/harness.x/mine/record.json",
        "runs/.hidden/judge/0123456789abcdef/record.json",
        "elsewhere/record.json",
    }
    for name in others:
        filesystem.write_bytes(f"{lab.root}/{name}", b"mine")
    lab.prune(listing=Listing([lab.checkpoint.model_copy(update={"name": "other"})], {}), deleted_checkpoints=True)
    assert others < lab.files()


@pytest.mark.parametrize("deletions", range(4))
def test_an_interrupted_prune_leaves_whole_results_and_goes_on(lab, monkeypatch, deletions):
    lab.evaluate(shots=5)
    lab.evaluate(shots=3)
    lab.evaluate(shots=0)
    real, count = filesystem.delete, iter(range(100))

    def stop(url):
        if next(count) >= deletions:
            raise StoreError("the disk is gone")
        real(url)

    with monkeypatch.context() as patch:
        patch.setattr("halos_eval.planning.prune.filesystem.delete", stop)
        with pytest.raises(StoreError, match="the disk is gone"):
            lab.prune()
    whole(lab.root)
    lab.prune()
    assert lab.found() == ([], "")
    assert len([file for file in lab.files() if "demo_choice" in file]) == 2


STEPS = st.one_of(EDITS, st.sampled_from(["evaluate", "evaluate demo_cloze", "fail", "plan", "upgrade"]))


# Of two judges, the newest result of each says why the column is empty.
@example(steps=["evaluate", ("judge", 1), "evaluate", ("judge", 0), ("prompts", 1), "evaluate demo_cloze"], keep=1)
@settings(max_examples=15)
@given(steps=st.lists(STEPS, max_size=14), keep=st.integers(1, 2))
def test_tables_progress_and_plans_are_the_same_afterwards(steps, keep):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        lab, root = Lab(Path(name)), f"file://{name}/store"
        patch.setenv("HALOS_EVAL_SUITES", name)
        for number, step in enumerate(["plan", *steps]):
            own = load_suite("own")
            if isinstance(step, tuple):
                lab.edit(*step)
            elif step == "upgrade":
                patch.setattr("halos_eval.stages.tools.pinned", lambda package, number=number: f"9.{number}")
            else:
                plan = make_plan(own.keep(step.split()[1:]), lab.checkpoint, root, load_cluster())
                save_plan(plan, own, root)
                for job in plan.jobs if step != "plan" else ():
                    if step == "fail":
                        write_failure(layout.failure_beside(job.record))
                    else:
                        write_result(job, NOW + timedelta(minutes=number))

        def seen():
            plan = make_plan(load_suite("own"), lab.checkpoint, root, load_cluster())
            progress = overview(root, [lab.checkpoint], load_cluster())
            return frame(read_rows(root, "own")).to_csv(), progress, plan.model_dump_json()

        before = seen()
        pruner = Pruner(root, Listing([lab.checkpoint], {}), load_cluster(), Retention(ALWAYS, keep))
        found = pruner.find("kto")
        target(len(found.removals))
        assert pruner.remove("kto", found).removals == found.removals
        assert pruner.find("kto").removals == ()
        assert seen() == before
        whole(root)
