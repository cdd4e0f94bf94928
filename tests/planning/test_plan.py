"""Plans: which jobs are done, which must run, and the reason of each."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.checkpoints.weights import Weights, inspect
from halos_eval.cli.main import HalosEval
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput, DataUnavailable, StoreError
from halos_eval.planning.jobs import PlannedJob, StageJob, fetch_job, summary_job
from halos_eval.planning.plan import Plan, make_plan, read_plan, save_plan, suite_manifest
from halos_eval.shipped import shipped
from halos_eval.stages.harness.options import harness_identity
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import Item, cached_path, write_manifest
from halos_eval.storage.records import write_model
from tests.doubles import (
    NOW,
    finish,
    make_adapter,
    make_checkpoint,
    make_manifest,
    make_record,
    write_failure,
    write_safetensors,
)
from tests.stages.test_run import parse

TITLES = ["sample", "judge", "demo_choice", "demo_arithmetic", "demo_cloze"]
SUITE = load_suite("demo")


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(name="team/kto", location=str(make_checkpoint(tmp_path / "kto" / "FINAL")))


@pytest.fixture
def plan(checkpoint, root):
    """``plan(**options)`` plans the demo suite, or another, on a checkpoint."""

    def plan(suite=SUITE, checkpoint=checkpoint, **options):
        return make_plan(suite, checkpoint, root, load_cluster(), **options)

    return plan


def by_title(plan):
    return {job.title: job for job in plan.jobs}


def identity_of(config, manifest=None):
    """Return the identity that the harness stage computes."""
    checkpoint = inspect(config.model).reference(config.name, config.model)
    return harness_identity(
        config.task, config, config.include_path, config.chat_template, checkpoint, manifest, config.stop
    )


def finish_for_real(job):
    """Write the record of a harness job, with the identity that the stage computes."""
    config = parse(list(job.argv))
    found = identity_of(config)
    assert found.fingerprint == config.expect
    finish(job, identity=found.document)


def changed_task(name, **changes):
    tasks = SUITE.tasks | {name: SUITE.tasks[name].model_copy(update=changes)}
    return SUITE.model_copy(update={"tasks": tasks})


def test_a_stage_looks_at_links_as_the_plan_does(plan, checkpoint, tmp_path):
    registered = checkpoint.model_copy(update={"root": str(tmp_path)})
    found = by_title(plan(checkpoint=registered))
    assert {parse(list(found[title].argv)).root for title in TITLES if title != "judge"} == {str(tmp_path)}
    (tmp_path / "kto" / "FINAL" / "tokenizer.json").unlink()
    (tmp_path / "kto" / "FINAL" / "tokenizer.json").symlink_to("/etc/hostname")
    with pytest.raises(BadInput, match=f"is a link to /etc/hostname; expected a file in .* or {tmp_path}"):
        plan(checkpoint=registered)


def test_nothing_has_been_run(plan, checkpoint):
    found = plan()
    assert [job.title for job in found.jobs] == TITLES
    assert {(job.done, job.why) for job in found.jobs} == {(False, "never run")}
    assert [job.image for job in found.jobs] == ["worker", "judge", "worker", "worker", "worker"]
    assert found.suite == "demo"
    assert found.checkpoint.name == "team/kto"
    assert found.checkpoint.digest == inspect(checkpoint.location).digest
    assert [job.metric for job in found.jobs] == [None, None, "acc", "exact_match,flexible-extract", None]


def test_planning_writes_nothing(plan, root):
    plan()
    assert not filesystem.exists(root)


def test_every_command_is_accepted_by_the_command_line(plan, root, checkpoint):
    jobs = by_title(plan(force=True))
    sample, judge, harness = (parse(list(jobs[title].argv)) for title in ("sample", "judge", "demo_choice"))
    for title, config in (("sample", sample), ("judge", judge), ("demo_choice", harness)):
        assert HalosEval.model_fields[jobs[title].stage]
        assert (config.name, config.suite, config.force) == ("team/kto", "demo", True)
        assert config.expect == jobs[title].fingerprint
    folder = f"{root}/runs/team__kto"
    assert sample.output == f"{folder}/sample/{jobs['sample'].fingerprint}/outputs.json"
    assert jobs["sample"].record == layout.record_beside(sample.output) == judge.outputs
    assert f"{judge.output_dir}/record.json" == jobs["judge"].record
    assert f"{harness.output_dir}/record.json" == jobs["demo_choice"].record
    assert harness.output_dir.startswith(f"{folder}/harness.demo_choice/")
    assert sample.model == harness.model == checkpoint.location
    assert (sample.max_tokens, harness.dtype, harness.enforce_eager) == (96, "float32", True)


def test_jobs_with_records_are_done(plan):
    for job in plan().jobs:
        finish(job)
    assert {(job.done, job.why) for job in plan().jobs} == {(True, "finished 2026-01-02 03:04 UTC")}


def test_one_record_is_one_finished_job(plan):
    finish(by_title(plan())["demo_choice"])
    assert [job.title for job in plan().jobs if job.done] == ["demo_choice"]


def test_force_runs_finished_jobs(plan):
    for job in plan().jobs:
        finish(job)
    found = plan(force=True)
    assert {(job.done, job.why) for job in found.jobs} == {(False, "forced")}
    assert all("--force" in job.argv for job in found.jobs)


def test_a_changed_setting_is_named(plan):
    finish_for_real(by_title(plan())["demo_choice"])
    jobs = by_title(plan(changed_task("demo_choice", limit=5)))
    assert not jobs["demo_choice"].done
    assert jobs["demo_choice"].why == "changed since 2026-01-02: limit None then, 5 now"
    assert jobs["demo_cloze"].why == "never run"


def test_settings_that_do_not_affect_scores_change_nothing(plan):
    finish(by_title(plan())["demo_choice"])
    moved = SUITE.model_copy(update={"enforce_eager": False, "gpu_memory_utilization": 0.5})
    assert by_title(plan(moved))["demo_choice"].done


def test_changed_weights_are_named(plan, tmp_path):
    finish_for_real(by_title(plan())["demo_choice"])
    write_safetensors(tmp_path / "kto" / "FINAL" / "model.safetensors", b"other   ")
    jobs = plan().jobs
    assert not any(job.done for job in jobs)
    assert by_title(plan())["demo_choice"].why == "changed since 2026-01-02: weights"


def test_a_changed_tool_is_named(plan, monkeypatch):
    finish_for_real(by_title(plan())["demo_choice"])
    monkeypatch.setattr("halos_eval.stages.tools.pinned", lambda package: "9.9")
    why = by_title(plan())["demo_choice"].why
    assert "lm-eval 0.4.13 then, 9.9 now, vllm 0.32.0 then, 9.9 now" in why


def test_the_newest_record_is_compared_with(plan):
    finish_for_real(by_title(plan())["demo_choice"])
    five = by_title(plan(changed_task("demo_choice", limit=5)))["demo_choice"]
    finish(five, NOW + timedelta(days=1), identity={"settings": {"limit": 5}})
    assert "changed since 2026-01-03: " in by_title(plan(changed_task("demo_choice", limit=6)))["demo_choice"].why
    assert "limit 5 then, 6 now" in by_title(plan(changed_task("demo_choice", limit=6)))["demo_choice"].why


def test_an_earlier_failure_is_the_reason(plan):
    job = by_title(plan())["judge"]
    write_failure(layout.failure_beside(job.record), "the quota is spent", "JudgeRefused")
    assert by_title(plan())["judge"].why == "failed before: JudgeRefused: the quota is spent"
    finish(job)
    finish(by_title(plan())["sample"])
    assert by_title(plan())["judge"].done


def test_a_damaged_record_is_made_again(plan):
    filesystem.write_bytes(by_title(plan())["judge"].record, b"{")
    job = by_title(plan())["judge"]
    assert (job.done, job.why.partition(":")[0]) == (False, "damaged record")


def test_outputs_that_are_sampled_again_are_judged_again(plan):
    jobs = by_title(plan())
    finish(jobs["judge"])
    again = by_title(plan())["judge"]
    assert (again.done, again.why) == (False, "the outputs are sampled again")
    finish(jobs["sample"], files={"outputs.json": "other"})
    assert not by_title(plan())["judge"].done
    finish(jobs["sample"])
    assert by_title(plan())["judge"].done


def test_another_judge_judges_the_same_outputs(plan):
    usual, other = by_title(plan()), by_title(plan(judge="gpt-4.1-mini"))
    assert other["sample"] == usual["sample"]
    assert other["judge"].fingerprint != usual["judge"].fingerprint
    assert parse(list(other["judge"].argv)).judge == "gpt-4.1-mini"


def test_other_sampling_is_judged_again(plan):
    settings = SUITE.alpaca_eval.model_copy(
        update={"sampling": SUITE.alpaca_eval.sampling.model_copy(update={"seed": 1})}
    )
    usual, other = by_title(plan()), by_title(plan(SUITE.model_copy(update={"alpaca_eval": settings})))
    for title in ("sample", "judge"):
        assert other[title].fingerprint != usual[title].fingerprint
    assert other["demo_choice"] == usual["demo_choice"]


def test_metadata_of_the_checkpoint(plan, checkpoint):
    metadata = Metadata(chat_template="chatml", stop=("###", "\n\n"), tags={"method": "kto"})
    tasks = SUITE.tasks | {"ifeval": SUITE.tasks["demo_cloze"].model_copy(update={"apply_chat_template": True})}
    found = plan(SUITE.model_copy(update={"tasks": tasks}), checkpoint.model_copy(update={"metadata": metadata}))
    jobs = by_title(found)
    assert found.tags == {"method": "kto"}
    sample = parse(list(jobs["sample"].argv))
    assert (sample.stop, sample.chat_template) == (("###", "\n\n"), "chatml")
    # They affect only the tasks with a chat template. The others must not run again when they change.
    ifeval = parse(list(jobs["ifeval"].argv))
    assert (ifeval.stop, ifeval.chat_template) == (("###", "\n\n"), "chatml")
    assert jobs["demo_choice"] == by_title(plan())["demo_choice"]
    assert jobs["sample"].fingerprint != by_title(plan())["sample"].fingerprint


@pytest.mark.parametrize("part", [["alpaca_eval"], ["demo_choice", "demo_cloze"]])
def test_some_parts(plan, part):
    titles = ["sample", "judge"] if part == ["alpaca_eval"] else part
    assert [job.title for job in plan(SUITE.keep(part)).jobs] == titles


def test_errors_are_found_before_anything_runs(plan, checkpoint, tmp_path):
    with pytest.raises(BadInput, match="judge 'gpt-5'"):
        plan(judge="gpt-5")
    with pytest.raises(BadInput, match="chat template nothing"):
        plan(checkpoint=checkpoint.model_copy(update={"metadata": Metadata(chat_template="nothing")}))
    with pytest.raises(BadInput, match="include-path"):
        plan(SUITE.model_copy(update={"include_path": "/none"}))
    (tmp_path / "kto" / "FINAL" / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="is incomplete"):
        plan()


def saved(root):
    return Plan.model_validate_json(filesystem.read_bytes(layout.plan_url(root, "demo", "team/kto")))


def test_a_plan_is_kept(plan, root):
    found = plan()
    save_plan(found, SUITE, root)
    kept = saved(root)
    assert kept == found.model_copy(update={"definitions": kept.definitions, "known": None})
    assert set(saved(root).definitions) == {"alpaca_eval", "sample", "demo_choice", "demo_arithmetic", "demo_cloze"}


def test_a_plan_keeps_the_suites_threshold_and_no_job_depends_on_it(plan):
    assert plan().warn_above == 1  # the demo's
    changed = plan(SUITE.model_copy(update={"warn_above": 0.2}))
    assert changed.warn_above == 0.2
    assert [job.fingerprint for job in changed.jobs] == [job.fingerprint for job in plan().jobs]


def test_runs_of_some_parts_make_one_plan(plan, root):
    save_plan(plan(SUITE.keep(["demo_choice"])), SUITE, root)
    assert [job.title for job in saved(root).jobs] == ["demo_choice"]
    assert saved(root).left_out == ("alpaca_eval", "demo_arithmetic", "demo_cloze")
    save_plan(plan(SUITE.keep(["alpaca_eval", "demo_choice"])), SUITE, root)
    assert sorted(job.title for job in saved(root).jobs) == ["demo_choice", "judge", "sample"]
    assert saved(root).left_out == ("demo_arithmetic", "demo_cloze")
    save_plan(plan(SUITE.keep(["demo_arithmetic", "demo_cloze"])), SUITE, root)
    assert sorted(job.title for job in saved(root).jobs) == sorted(TITLES)
    assert saved(root).left_out == ()


def test_the_newest_plan_of_a_part_counts(plan, root):
    save_plan(plan(), SUITE, root)
    later = plan(changed_task("demo_choice", limit=5).keep(["demo_choice"]))
    save_plan(later, SUITE, root)
    assert by_title(saved(root))["demo_choice"] == later.jobs[0]


def test_parts_that_were_removed_from_the_suite_are_dropped(plan, root):
    save_plan(plan(), SUITE, root)
    smaller = SUITE.keep(["demo_choice", "demo_cloze"])
    save_plan(plan(smaller.keep(["demo_choice"])), smaller, root)
    assert sorted(job.title for job in saved(root).jobs) == ["demo_choice", "demo_cloze"]


def test_parts_with_other_settings_are_dropped(plan, root):
    save_plan(plan(), SUITE, root)
    changed = SUITE.model_copy(
        update={"tasks": {**SUITE.tasks, "demo_cloze": SUITE.tasks["demo_cloze"].model_copy(update={"limit": 3})}}
    )
    save_plan(plan(changed.keep(["demo_choice"])), changed, root)
    assert sorted(job.title for job in saved(root).jobs) == ["demo_arithmetic", "demo_choice", "judge", "sample"]
    assert saved(root).left_out == ("demo_cloze",)


def test_a_damaged_plan_is_named(root):
    filesystem.write_bytes(layout.plan_url(root, "demo", "kto"), b"{}")
    with pytest.raises(StoreError, match=r"kto\.json is not a valid plan"):
        read_plan(layout.plan_url(root, "demo", "kto"))


def test_parts_of_other_weights_are_dropped(plan, root, tmp_path):
    save_plan(plan(), SUITE, root)
    write_safetensors(tmp_path / "kto" / "FINAL" / "model.safetensors", b"other   ")
    save_plan(plan(SUITE.keep(["demo_choice"])), SUITE, root)
    assert [job.title for job in saved(root).jobs] == ["demo_choice"]
    assert saved(root).left_out == ("alpaca_eval", "demo_arithmetic", "demo_cloze")


# Where it runs


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """``cluster(**parts)`` writes a cluster file with profiles of one, two and four GPUs, and these parts."""

    def cluster(**parts):
        profiles = {"default": {"gpus": 1}, "two": {"gpus": 2}, "four": {"gpus": 4, "tensorParallelSize": 2}, "cpu": {}}
        document = {"pools": {"gpu": 8, "judge": 1}, "profiles": profiles} | parts
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(document))
        monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))

    return cluster


KUBERNETES = {"namespace": "halos", "images": {"worker": "w", "judge": "j"}, "serviceAccountName": "stage"}
WITH_OUTBOX = KUBERNETES | {"volumes": {"outbox": {"mountPath": "/outbox", "persistentVolumeClaim": "outbox"}}}


def with_profiles(suite=None, alpaca_eval=None, task=None, **changes):
    """Return the demo suite with profiles for AlpacaEval and for demo_choice, and other changes of demo_choice."""
    return changed_task("demo_choice", profile=task, **changes).model_copy(
        update={
            "profile": suite or SUITE.profile,
            "alpaca_eval": SUITE.alpaca_eval.model_copy(update={"profile": alpaca_eval}),
        }
    )


def with_profile(checkpoint, profile):
    return checkpoint.model_copy(update={"metadata": Metadata(profile=profile)})


def with_code():
    """Return the demo suite with a demo_choice that executes model-written code."""
    return changed_task("demo_choice", confirm_unsafe_code=True)


def profiles_of(plan):
    return {job.title: job.profile for job in plan.jobs}


def test_the_suites_profile(plan, cluster):
    cluster()
    assert profiles_of(plan()) == dict.fromkeys(TITLES, "default") | {"judge": "cpu"}
    assert profiles_of(plan(with_profiles(suite="two"))) == dict.fromkeys(TITLES, "two") | {"judge": "cpu"}


def test_a_parts_own_profile_comes_before_the_suites(plan, cluster):
    cluster()
    found = profiles_of(plan(with_profiles(suite="two", alpaca_eval="four", task="default")))
    assert found == {
        "sample": "four", "judge": "cpu", "demo_choice": "default", "demo_arithmetic": "two", "demo_cloze": "two",
    }  # fmt: skip


def test_the_checkpoints_profile_comes_before_all(plan, cluster, checkpoint):
    cluster()
    found = plan(with_profiles(suite="two", alpaca_eval="two", task="two"), with_profile(checkpoint, "four"))
    assert profiles_of(found) == dict.fromkeys(TITLES, "four") | {"judge": "cpu"}


@pytest.mark.parametrize(
    ("profile", "gpus", "parts", "engines"), [("default", 1, 1, None), ("two", 2, 2, None), ("four", 4, 2, 1)]
)
def test_a_model_is_split_over_its_profiles_gpus(plan, cluster, profile, gpus, parts, engines):
    cluster()
    for job in plan(with_profiles(suite=profile)).jobs:
        config = parse(list(job.argv))
        if job.stage == "judge":
            assert job.gpus == 0
        else:
            assert (job.gpus, config.tensor_parallel_size, config.engines) == (gpus, parts, engines)


def test_a_profile_that_cannot_run_is_found_before_anything_runs(plan, cluster, checkpoint):
    cluster(pools={"gpu": 3, "judge": 1})
    for suite, one in (
        (with_profiles(suite="four"), checkpoint),
        (with_profiles(alpaca_eval="four"), checkpoint),
        (with_profiles(task="four"), checkpoint),
        (SUITE, with_profile(checkpoint, "four")),
    ):
        with pytest.raises(BadInput, match="profile four requests 4 GPUs, but the pool has only 3"):
            plan(suite, one)
    with pytest.raises(BadInput, match="unknown profile 'huge'"):
        plan(checkpoint=with_profile(checkpoint, "huge"))


def test_a_broken_cluster_file_is_found_before_anything_runs(plan, cluster):
    cluster(pools={"gpu": 0})
    with pytest.raises(BadInput, match=r"cluster\.yaml \(HALOS_EVAL_CLUSTER\): pools\.gpu: .*; pools\.judge: "):
        plan()


def test_the_profile_is_not_part_of_the_fingerprint(plan, root, cluster, checkpoint):
    cluster(kubernetes=WITH_OUTBOX)
    usual = plan(with_code())
    save_plan(usual, with_code(), root)
    before = saved(root).definitions
    for job in usual.jobs:
        finish(job)
    elsewhere = with_profiles(suite="two", alpaca_eval="four", task="two", confirm_unsafe_code=True)
    found = plan(elsewhere, with_profile(checkpoint, "four"))
    assert [job.fingerprint for job in found.jobs] == [job.fingerprint for job in usual.jobs]
    assert {job.done for job in found.jobs} == {True}
    save_plan(found, elsewhere, root)
    assert saved(root).definitions == before


def test_code_on_a_cluster_is_executed_in_a_pod_that_sees_the_outbox_only(plan, root, cluster):
    cluster(kubernetes=WITH_OUTBOX)
    jobs = by_title(plan(with_code()))
    code = jobs["demo_choice"]
    tail = f"team__kto/harness.demo_choice/{code.fingerprint}"
    assert {title for title, job in jobs.items() if job.score} == {"demo_choice"}
    assert {job.outbox for job in jobs.values()} == {None}
    # The GPU pod writes the answers to the store, and a copy for the other pod.
    generate = parse(list(code.generate.argv))
    assert (generate.output_dir, generate.answers_only) == (f"{root}/runs/{tail}", True)
    assert (generate.copy_answers_to, code.generate.answers) == ("file:///outbox", f"answers/{tail}")
    assert (code.generate.outbox, code.generate.profile, code.generate.gpus) == (None, "default", 1)
    # The plan expects the record where the summary copies it.
    assert code.score.outbox == f"runs/{tail}"
    assert code.record == code.score.unless == f"{root}/runs/{tail}/record.json"
    score = parse(list(code.score.argv))
    assert (score.answers, score.output_dir, score.expect) == ("file:///answers", "file:///outbox", code.fingerprint)
    assert (code.score.answers, code.score.profile, code.score.gpus) == (f"answers/{tail}", "cpu", 0)
    assert not [word for word in code.score.argv if root in word or "FINAL" in word]
    finish(code)
    assert by_title(plan(with_code()))["demo_choice"].done


def test_answers_that_exist_are_only_copied_to_the_outbox(plan, cluster):
    """The store has them, but the outbox need not: the pod that copies them has no GPU."""
    cluster(kubernetes=WITH_OUTBOX)
    first = by_title(plan(with_code()))["demo_choice"]
    generated(first)
    found = by_title(plan(with_code()))["demo_choice"]
    assert (found.done, found.why) == (False, "never run; its answers exist")
    assert (found.generate.argv, found.generate.answers) == (first.generate.argv, first.generate.answers)
    assert (found.generate.profile, found.generate.gpus) == ("cpu", 0)
    assert found.score == first.score
    again = by_title(plan(with_code(), force=True))["demo_choice"]
    assert (again.generate.profile, again.score.unless) == ("default", None)


def generated(job):
    """Write the record of the first half of a job."""
    record = make_record("harness", job.task, fingerprint=job.fingerprint)
    write_model(job.record.replace("record.json", "generated.json"), record)


def test_code_reads_its_pinned_data_and_its_own_files(plan, cluster, tmp_path, monkeypatch):
    volumes = WITH_OUTBOX["volumes"] | {"cache": {"mountPath": "/cache", "persistentVolumeClaim": "cache"}}
    cluster(kubernetes=WITH_OUTBOX | {"volumes": volumes})
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    data.write_text("{}")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(f"task: own\ndataset_kwargs: {{data_files: {data}}}\n")
    suite = with_code().model_copy(update={"include_path": str(tmp_path / "tasks")})
    items = {"kind": "dataset", "repo": "a/b", "revision": "c", "bytes": 1, "digest": "d"}
    manifest = make_manifest(suite).model_copy(
        update={
            "items": (
                Item(asked="1", path="datasets/mine", needed_by=("demo_choice",), **items),
                Item(asked="2", path="datasets/other", needed_by=("demo_cloze",), **items),
            )
        }
    )
    code = by_title(plan(suite, manifest=manifest))["demo_choice"]
    assert code.score.reads == (
        f"/cache/{cached_path(manifest)}", "/cache/datasets/mine", str(tmp_path / "tasks"), str(data),
    )  # fmt: skip
    assert code.generate.reads == ()


@pytest.mark.parametrize("ending", ["", "/"])
def test_the_outboxs_folder_does_not_depend_on_how_the_store_is_written(checkpoint, root, cluster, ending):
    cluster(kubernetes=WITH_OUTBOX)
    [code] = make_plan(with_code().keep(["demo_choice"]), checkpoint, root + ending, load_cluster()).jobs
    assert code.score.outbox == f"runs/team__kto/harness.demo_choice/{code.fingerprint}"


def test_code_on_a_cluster_needs_an_outbox(plan, cluster):
    cluster(kubernetes=KUBERNETES)
    with pytest.raises(BadInput, match=r"demo_choice executes code .* Add kubernetes\.volumes\.outbox"):
        plan(with_code())
    assert plan()  # other tasks need none


def test_code_on_this_machine_writes_to_the_store(plan, root, cluster):
    cluster()
    code = by_title(plan(with_code()))["demo_choice"]
    folder = f"{root}/runs/team__kto/harness.demo_choice/{code.fingerprint}"
    generate, score = parse(list(code.generate.argv)), parse(list(code.score.argv))
    assert (generate.output_dir, generate.copy_answers_to, score.answers, score.output_dir) == (
        folder, None, folder, folder,
    )  # fmt: skip
    assert (code.score.outbox, code.score.reads, code.score.gpus) == (None, (), 0)
    generated(code)
    assert by_title(plan(with_code()))["demo_choice"].generate is None


def test_the_halves_of_a_job_are_not_saved(plan, root):
    """They follow from the cluster file, and a saved plan keeps its format."""
    save_plan(plan(with_code()), with_code(), root)
    (code,) = [job for job in saved(root).jobs if job.title == "demo_choice"]
    assert (code.generate, code.score) == (None, None)
    written = json.loads(filesystem.read_bytes(layout.plan_url(root, "demo", "team/kto")))
    assert not written["jobs"][0].keys() & {"answers", "reads", "unless", "generate", "score"}
    assert code.gpus == 1


def test_the_summary_empties_the_outbox(root, cluster):
    cluster(kubernetes=WITH_OUTBOX)
    job = summary_job("demo", "one", root, load_cluster())
    config = parse(list(job.argv))
    assert (config.root, config.suite, config.checkpoint, config.outbox) == (root, "demo", "one", "/outbox")
    assert config.output == layout.report_url(root, "demo")
    assert (job.stage, job.image, job.profile, job.gpus, job.outbox) == ("summarize", "judge", "cpu", 0, None)
    cluster(kubernetes=KUBERNETES)
    assert parse(list(summary_job("demo", "one", root, load_cluster()).argv)).outbox is None
    cluster()
    assert parse(list(summary_job("demo", "one", root, load_cluster()).argv)).outbox is None


def test_the_job_of_a_pod_is_part_of_the_plan():
    common = {"stage": "harness", "task": "arc", "image": "worker", "argv": ("harness",), "profile": "default"}
    planned = PlannedJob(**common, fingerprint="f", record="r", done=False, why="")
    assert StageJob(**planned.model_dump(include=set(StageJob.model_fields))) == StageJob(**common)
    with pytest.raises(ValidationError):
        StageJob.model_validate(planned.model_dump())


def test_a_model_of_the_hub_runs_at_the_commit_that_was_planned(monkeypatch, tmp_path):
    asked = []

    def inspect(model, revision, manifest, digests, root):
        asked.append((model, revision))
        return Weights(name="m", model=model, revision="c0ffee", digest="hub:c0ffee")

    monkeypatch.setattr("halos_eval.planning.planner.inspect", inspect)
    checkpoint = Checkpoint(name="m", location="lab/m", revision="main")
    found = make_plan(load_suite("demo"), checkpoint, f"file://{tmp_path}", load_cluster())
    assert asked == [("lab/m", "main")]
    revisions = {job.title for job in found.jobs if "--revision=c0ffee" in job.argv}
    assert revisions == {"sample", "demo_choice", "demo_arithmetic", "demo_cloze"}


# With a manifest

WITH_CACHE = KUBERNETES | {"volumes": {"cache": {"mountPath": "/cache", "persistentVolumeClaim": "cache"}}}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def item(kind="dataset", asked="a", part="demo_choice", **more):
    common = {"repo": "r/r", "revision": "c0ffee", "bytes": 1, "digest": "d", "path": "x", "needed_by": (part,)}
    return Item(kind=kind, asked=asked, **common | more)


@pytest.fixture
def make_fetch_job(checkpoint, root):
    """``make_fetch_job(**options)`` returns the fetch job of the demo suite, or another, and a checkpoint."""

    def make_fetch_job(suite=SUITE, checkpoint=checkpoint, tasks=(), **options):
        return fetch_job(suite, checkpoint, root, load_cluster(), list(tasks), **options)

    return make_fetch_job


def keep_manifest(root, manifest):
    write_manifest(layout.manifest_url(root, manifest.suite), manifest)


def test_unpinned_data_is_fetched(make_fetch_job, root, cluster, cache):
    cluster(kubernetes=WITH_CACHE)
    job = make_fetch_job()
    config = parse(list(job.argv))
    assert (config.suite, config.checkpoints, config.tasks) == ("demo", (), ())
    assert config.manifest == f"{root}/manifests/demo.json"
    assert (job.stage, job.title, job.image, job.profile, job.gpus) == ("fetch", "fetch", "worker", "cpu", 0)
    assert job.manifest is None
    assert parse(list(make_fetch_job(tasks=["demo_cloze", "alpaca_eval"]).argv)).tasks == ("demo_cloze", "alpaca_eval")


def test_pinned_data_is_not_fetched(make_fetch_job, root, cache):
    keep_manifest(root, make_manifest(SUITE))
    assert make_fetch_job() is None
    assert make_fetch_job(tasks=["demo_choice"]) is None
    assert make_fetch_job(force=True)  # fetches files again that the cache has lost
    assert make_fetch_job(changed_task("demo_choice", num_fewshot=1))
    assert make_fetch_job(changed_task("demo_choice", num_fewshot=1), tasks=["demo_cloze"]) is None


def test_every_run_fetches_unavailable_data_again(make_fetch_job, root, cache):
    keep_manifest(root, make_manifest(SUITE, reasons={"demo_choice": "it is gated"}))
    assert make_fetch_job()
    assert make_fetch_job(tasks=["demo_cloze"]) is None


def test_a_checkpoint_in_a_folder_needs_no_fetch_and_one_on_the_hub_does(make_fetch_job, root, cache, tmp_path):
    adapter = Checkpoint(name="lora", location=str(make_adapter(tmp_path / "lora, é", "meta/base")))
    model = Checkpoint(name="m", location="lab/m", revision="main")
    keep_manifest(root, make_manifest(SUITE))
    assert parse(list(make_fetch_job(checkpoint=model).argv)).checkpoints == ("lab/m@main",)
    assert parse(list(make_fetch_job(checkpoint=adapter).argv)).checkpoints == (adapter.location,)
    keep_manifest(root, make_manifest(SUITE, checkpoints=["lab/m@main"]))
    assert make_fetch_job(checkpoint=model) is None
    assert make_fetch_job(checkpoint=adapter)
    with pytest.raises(BadInput, match="cannot be read; expected a folder, s3://"):
        make_fetch_job(checkpoint=model.model_copy(update={"location": "gs://bucket/m"}))


@pytest.mark.parametrize("volumes", [{}, {"cache": {"mountPath": "/cache", "emptyDir": "9Gi"}}])
def test_without_a_persistent_cache_nothing_is_fetched(make_fetch_job, root, cluster, cache, volumes):
    keep_manifest(root, make_manifest(SUITE, reasons={"demo_choice": "it is gated"}))
    assert suite_manifest("demo", root, load_cluster())
    cluster(kubernetes=KUBERNETES | {"volumes": volumes})
    assert make_fetch_job() is None
    assert make_fetch_job(force=True) is None
    assert suite_manifest("demo", root, load_cluster()) is None


def test_a_users_suite_is_named_by_its_file(make_fetch_job, cache, tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text("tasks: {demo_cloze: {}}")
    monkeypatch.setenv("HALOS_EVAL_SUITES", str(tmp_path))
    assert parse(list(make_fetch_job(load_suite("own")).argv)).suite == str(tmp_path / "own.yaml")


def test_a_plan_with_a_manifest_passes_it_to_every_stage(plan, root, cache):
    manifest = make_manifest(SUITE, items=[item()])
    keep_manifest(root, manifest)
    found = plan(manifest=manifest)
    assert {parse(list(job.argv)).manifest for job in found.jobs} == {str(cache / cached_path(manifest))}
    assert all(job.manifest for job in found.jobs)
    assert found.unavailable == {}
    (cache / cached_path(manifest)).unlink()  # as on another machine
    jobs = plan(manifest=manifest).jobs
    assert {parse(list(job.argv)).manifest for job in jobs} == {layout.manifest_url(root, "demo")}
    assert not any(job.manifest for job in plan().jobs)


def test_a_pod_finds_the_manifest_in_its_cache(plan, root, cluster, cache):
    manifest = make_manifest(with_code())
    volumes = WITH_OUTBOX["volumes"] | WITH_CACHE["volumes"]
    cluster(kubernetes=KUBERNETES | {"volumes": volumes})
    for job in plan(with_code(), manifest=manifest).jobs:
        assert parse(list(job.argv)).manifest == f"/cache/{cached_path(manifest)}"


def fingerprints(plan):
    return {job.title: job.fingerprint for job in plan.jobs}


def test_the_fingerprint_depends_on_the_data_and_not_on_the_manifests_path(plan, root, cluster, cache):
    usual = fingerprints(plan())
    assert fingerprints(plan(manifest=make_manifest(SUITE))) == usual  # the demo needs no data from the hub
    staged = fingerprints(plan(manifest=make_manifest(SUITE, items=[item()])))
    assert {title for title in TITLES if staged[title] != usual[title]} == {"demo_choice"}
    moved = [item(revision="other", path="y")]
    assert fingerprints(plan(manifest=make_manifest(SUITE, items=moved))) == staged
    assert fingerprints(plan(manifest=make_manifest(SUITE, items=[item(digest="e")]))) != staged
    cluster(kubernetes=WITH_CACHE)
    assert fingerprints(plan(manifest=make_manifest(SUITE, items=[item()]))) == staged


def test_the_stage_computes_the_planned_fingerprint(plan, cache):
    manifest = make_manifest(SUITE, items=[item()])
    code = by_title(plan(manifest=manifest))["demo_choice"]
    config = parse(list(code.argv))
    assert identity_of(config, manifest).fingerprint == config.expect == code.fingerprint


def test_unavailable_parts_have_no_job_and_a_reason(plan, cache):
    found = plan(manifest=make_manifest(SUITE, reasons={"demo_cloze": "it is gated", "alpaca_eval": "no such file"}))
    assert [job.title for job in found.jobs] == ["demo_choice", "demo_arithmetic"]
    assert found.unavailable == {"demo_cloze": "it is gated", "alpaca_eval": "no such file"}
    missing = plan(manifest=make_manifest(SUITE.keep(["demo_choice"])))
    assert [job.title for job in missing.jobs] == ["demo_choice"]
    assert "demo_cloze is not in the manifest. Run `halos-eval fetch demo`" in missing.unavailable["demo_cloze"]


def test_prompts_that_are_not_in_the_manifest_are_unavailable(plan, cache):
    settings = SUITE.alpaca_eval.model_copy(update={"prompts": "alpaca_eval"})
    suite = SUITE.model_copy(update={"alpaca_eval": settings})
    found = plan(suite, manifest=make_manifest(suite))
    assert list(found.unavailable) == ["alpaca_eval"]
    assert "has no file alpaca_eval.json" in found.unavailable["alpaca_eval"]


def test_an_unavailable_checkpoint_has_no_plan(plan, cache):
    model = Checkpoint(name="m", location="lab/m", revision="main")
    with pytest.raises(DataUnavailable, match="checkpoint:lab/m@main is not in the manifest"):
        plan(checkpoint=model, manifest=make_manifest(SUITE))
    gated = make_manifest(SUITE, checkpoints=["lab/m@main"], reasons={"checkpoint:lab/m@main": "the model is gated"})
    with pytest.raises(DataUnavailable, match="the model is gated"):
        plan(checkpoint=model, manifest=gated)


def test_a_pinned_model_is_found_by_its_branch_and_identified_by_its_commit(plan, cache):
    title = "checkpoint:lab/m@main"
    model = item("model", "lab/m@main", title, path="hub/models--lab--m")
    found = plan(
        checkpoint=Checkpoint(name="m", location="lab/m", revision="main"),
        manifest=make_manifest(SUITE, checkpoints=["lab/m@main"], items=[model]),
    )
    assert found.checkpoint.digest == "hub:c0ffee"
    config = parse(list(by_title(found)["demo_choice"].argv))
    assert (config.model, config.revision) == ("lab/m", "main")


def test_unavailable_parts_are_saved_with_the_plan(plan, root, cache):
    gated = make_manifest(SUITE, reasons={"demo_cloze": "it is gated"})
    save_plan(plan(manifest=gated), SUITE, root)
    assert saved(root).unavailable == {"demo_cloze": "it is gated"}
    assert saved(root).left_out == ()
    # A run of other parts does not change it.
    save_plan(plan(SUITE.keep(["demo_choice"]), manifest=make_manifest(SUITE)), SUITE, root)
    assert saved(root).unavailable == {"demo_cloze": "it is gated"}
    assert "demo_cloze" not in by_title(saved(root))
    # Now it is available.
    save_plan(plan(SUITE.keep(["demo_cloze"]), manifest=make_manifest(SUITE)), SUITE, root)
    assert saved(root).unavailable == {}
    assert sorted(by_title(saved(root))) == sorted(TITLES)
    # It is unavailable again.
    save_plan(plan(manifest=gated), SUITE, root)
    assert saved(root).unavailable == {"demo_cloze": "it is gated"}
    assert "demo_cloze" not in by_title(saved(root))


def test_unavailable_parts_with_changed_settings_are_left_out(plan, root, cache):
    save_plan(plan(manifest=make_manifest(SUITE, reasons={"demo_cloze": "it is gated"})), SUITE, root)
    changed = changed_task("demo_cloze", limit=3)
    save_plan(plan(changed.keep(["demo_choice"])), changed, root)
    assert saved(root).unavailable == {}
    assert saved(root).left_out == ("demo_cloze",)


# Limits of the model


def limited(checkpoint, **config):
    """Give the checkpoint's config.json these values."""
    document = {"model_type": "llama", "tie_word_embeddings": True} | config
    (Path(checkpoint.location) / "config.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "suite", [with_profiles(suite="two"), with_profiles(alpaca_eval="two"), with_profiles(task="two")]
)
def test_heads_that_the_gpus_of_a_part_do_not_divide(plan, cluster, checkpoint, suite):
    cluster()
    limited(checkpoint, num_attention_heads=9)
    with pytest.raises(BadInput, match=r"cannot be split over 2 GPUs \(9 attention heads\)"):
        plan(suite)
    assert plan()
    limited(checkpoint, num_attention_heads=8)
    assert plan(suite)


def test_transformers_splits_layers_and_not_heads(plan, cluster, checkpoint):
    cluster()
    limited(checkpoint, num_attention_heads=9)
    assert plan(with_profiles(task="two", backend="hf"))


def test_a_length_above_the_models(plan, checkpoint):
    limited(checkpoint, max_position_embeddings=2048)
    sampling = SUITE.alpaca_eval.sampling.model_copy(update={"max_model_len": 2049})
    alpaca_eval = SUITE.model_copy(update={"alpaca_eval": SUITE.alpaca_eval.model_copy(update={"sampling": sampling})})
    for suite in (alpaca_eval, changed_task("demo_choice", max_model_len=2049)):
        with pytest.raises(
            BadInput, match=r"max_model_len is above the model's own length \(2049\); expected at most 2048"
        ):
            plan(suite)
    assert plan(changed_task("demo_choice", max_model_len=2048))


@pytest.mark.parametrize(("own", "length"), [(None, 2048), (1024, 1024)])
def test_a_budget_that_leaves_no_token_for_a_prompt(plan, checkpoint, own, length):
    limited(checkpoint, max_position_embeddings=2048)

    def suite(budget):
        return changed_task("demo_arithmetic", max_model_len=own, gen_kwargs={"max_gen_toks": budget})

    with pytest.raises(BadInput, match=rf"max_gen_toks leaves no .*\({length}\); expected .* {length}\. Lower it, or"):
        plan(suite(length))
    assert plan(suite(length - 1))


def test_transformers_finds_its_length_itself(plan, checkpoint):
    limited(checkpoint, max_position_embeddings=4096, seq_length=2048)  # as the first Qwen: vLLM takes the lesser one
    task = {"max_model_len": None, "gen_kwargs": {"max_gen_toks": 3000}}
    with pytest.raises(BadInput, match=r"max_gen_toks leaves no token for a prompt \(3000\)"):
        plan(changed_task("demo_arithmetic", **task))
    assert plan(changed_task("demo_arithmetic", **task, backend="hf"))


def test_two_names_of_one_judge_are_rejected(plan, tmp_path):
    """Both would write the same record."""
    text = Path(shipped("judges") / "demo.yaml").read_text()
    (tmp_path / "ours.yaml").write_text(text.replace("demo:", "ours:", 1))
    judges = ("demo", str(tmp_path / "ours.yaml"))
    twice = SUITE.model_copy(update={"alpaca_eval": SUITE.alpaca_eval.model_copy(update={"judge": judges})})
    with pytest.raises(BadInput, match=r"two judges of suite demo are the same: demo, .*ours\.yaml"):
        plan(twice)
