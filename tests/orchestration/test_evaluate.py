"""The tasks that run in Airflow itself: the jobs of the plan, and a verdict that names everything that is missing."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException

from halos_eval.checkpoints.metadata import from_location
from halos_eval.checkpoints.registry import RegistryUnavailable
from halos_eval.config.cluster import load_cluster
from halos_eval.config.judge import load_judge
from halos_eval.config.judge_client import Client
from halos_eval.config.prices import Price
from halos_eval.config.suite import load_suite
from halos_eval.errors import StoreError
from halos_eval.orchestration import evaluate
from halos_eval.planning.plan import Plan, make_plan, save_plan, suite_manifest
from halos_eval.reports.comparison import Flip, GateOutcome, Verdict, write_gate
from halos_eval.stages.fetch import fetch
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Usage, read_record, write_model
from tests.doubles import NOW, finish, make_checkpoint, make_manifest, make_provenance, make_record, write_failure
from tests.doubles.s3 import bucket, upload
from tests.stages.test_run import parse

PARAMS = {
    "checkpoint": "kto", "suite": "demo", "tasks": None, "judge": None, "profile": None, "force": False,
    "priority": "manual",
}  # fmt: skip
KEYS = {
    "stage", "task", "judge", "label", "image", "argv", "profile", "gpus", "pool", "manifest", "outbox", "server",
    "answers", "reads", "unless", "boxes", "packed",
}  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "checkpoints" / "kto" / "FINAL")
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("HALOS_EVAL_STORE", f"file://{tmp_path}/store")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return f"file://{tmp_path}/store"


@pytest.fixture
def staged(root):
    """``staged(reasons)`` writes the manifest of the demo suite."""

    def staged(**reasons):
        write_model(layout.manifest_url(root, "demo"), make_manifest(load_suite("demo"), reasons))

    return staged


@pytest.fixture
def without_cache(tmp_path, monkeypatch):
    """A cluster whose pods share no cache."""
    (tmp_path / "cluster.yaml").write_text(
        "{pools: {gpu: 1, judge: 1}, profiles: {default: {}, cpu: {}}, kubernetes: "
        "{namespace: n, images: {worker: w, judge: j}, serviceAccountName: s}}"
    )
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))


@pytest.fixture
def plan(staged, monkeypatch):
    """``plan(**params)`` returns the mapped jobs and the XComs. All data is pinned."""
    staged()

    def plan(prepared=None, **params):
        pushed = {}
        exchange = SimpleNamespace(xcom_push=pushed.__setitem__)
        monkeypatch.setattr(evaluate, "get_current_context", lambda: {"ti": exchange})
        params = PARAMS | params
        return evaluate.plan_evaluation(params, prepared or params["checkpoint"]), pushed

    return plan


def prepared(params):
    """The job that `prepare` returns."""
    name, job = evaluate.prepare_evaluation(params)
    assert name == params["checkpoint"]
    return job


def test_an_alias_that_moves_meanwhile_changes_nothing(plan, monkeypatch):
    settings = evaluate.Settings()
    registry = evaluate.open_registry(settings.checkpoints, settings.steps)

    class Aliases:
        def get(self, name):
            found = registry.get(PARAMS["checkpoint"])
            return found.model_copy(update={"name": "other"}) if name == "champion" else found

    monkeypatch.setattr(evaluate, "open_registry", lambda *_: Aliases())
    _, pushed = plan(prepared=PARAMS["checkpoint"], checkpoint="champion")
    assert pushed["checkpoint"] == PARAMS["checkpoint"]


def test_unpinned_data_gets_a_fetch_job(root):
    job = prepared(PARAMS)
    assert job["argv"] == ["fetch", f"--manifest={root}/manifests/demo.json", "--", "demo"]
    assert job.keys() == KEYS
    some = prepared(PARAMS | {"tasks": ["demo_cloze"]})
    assert '--tasks=["demo_cloze"]' in some["argv"]


def test_a_checkpoint_in_a_bucket_is_fetched_until_its_weights_are_no_longer_needed(
    staged, root, tmp_path, monkeypatch
):
    staged()
    with bucket() as registry:
        url = upload(tmp_path / "checkpoints" / "kto" / "FINAL", f"{registry}/kto/FINAL")
        monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", registry)
        job = prepared(PARAMS)
        assert job["argv"][2:] == [
            f"--store={root}", "--name=kto", "--weights-gib=500", "--", "demo", json.dumps([url]),
        ]  # fmt: skip
        fetch(parse(job["argv"]))
        suite, checkpoint = load_suite("demo"), from_location(url)
        plan = make_plan(suite, checkpoint, root, load_cluster(), manifest=suite_manifest("demo", root, load_cluster()))
        save_plan(plan, suite, root)
        assert prepared(PARAMS) == job  # only fetch knows whether the copy is still there
        for planned in plan.jobs:
            if planned.stage != "judge":
                finish(planned)
        assert prepared(PARAMS) == {}
        assert prepared(PARAMS | {"force": True}) == job


def test_pinned_data_needs_no_fetch_job(staged):
    staged()
    assert prepared(PARAMS) == {}
    assert prepared(PARAMS | {"force": True})["stage"] == "fetch"
    staged(demo_cloze="it is gated")
    assert prepared(PARAMS)
    assert prepared(PARAMS | {"tasks": ["demo_choice"]}) == {}


def test_without_a_shared_cache_stages_read_from_the_hub(plan, staged, without_cache):
    staged(demo_cloze="it is gated")
    assert prepared(PARAMS) == {}
    harness, pushed = plan()
    assert pushed["unavailable"] == {}
    assert not [word for job in (*harness, pushed["sample"]) for word in job["argv"] if "--manifest" in word]


def test_an_unavailable_part_is_passed_to_the_verdict(plan, staged, root):
    staged(demo_cloze="it is gated")
    harness, pushed = plan()
    assert [job["task"] for job in harness] == ["demo_choice", "demo_arithmetic"]
    assert pushed["unavailable"] == {"demo_cloze": "it is gated"}
    for job in (*harness, pushed["sample"], *pushed["judges"]):
        assert [word for word in job["argv"] if word == f"--manifest={root}/manifests/demo.json"]


def test_without_a_manifest_there_is_no_plan(plan, root):
    filesystem.delete(f"{root}/manifests")
    with pytest.raises(AirflowFailException, match="DataUnavailable: suite demo has no manifest; the task `fetch`"):
        plan()
    assert not filesystem.exists(layout.plan_url(root, "demo", "kto"))


def test_a_new_checkpoint(plan, root):
    harness, pushed = plan()
    assert [job["task"] for job in harness] == ["demo_choice", "demo_arithmetic", "demo_cloze"]
    assert [job["argv"][0] for job in (pushed["sample"], *pushed["judges"])] == ["sample", "judge"]
    assert list(pushed["jobs"]) == ["sample", "judge", "demo_choice", "demo_arithmetic", "demo_cloze"]
    for job in (*harness, pushed["sample"], *pushed["judges"], pushed["summarize"]):
        assert job.keys() == KEYS
    assert pushed["summarize"]["argv"] == [
        "summarize", root, "--suite=demo", "--checkpoint=kto", f"--output={root}/reports/demo/summary.csv",
    ]  # fmt: skip
    kept = Plan.model_validate_json(filesystem.read_bytes(layout.plan_url(root, "demo", "kto")))
    assert {job.title: job.record for job in kept.jobs} == pushed["jobs"]
    assert pushed["code"] == []


def test_a_task_that_executes_code_has_two_jobs_of_its_own(plan, monkeypatch):
    suite = load_suite("demo")
    code = suite.tasks["demo_choice"].model_copy(update={"confirm_unsafe_code": True})
    suite = suite.model_copy(update={"tasks": suite.tasks | {"demo_choice": code}})
    monkeypatch.setattr(evaluate, "load_suite", lambda name: suite)
    harness, pushed = plan()
    assert [job["task"] for job in harness] == ["demo_arithmetic", "demo_cloze"]
    (halves,) = pushed["code"]
    assert {half: (job["argv"][0], job["profile"]) for half, job in halves.items()} == {
        "generate": ("harness", "default"), "score": ("score", "cpu"),
    }  # fmt: skip
    assert halves["generate"].keys() == halves["score"].keys() == KEYS
    # With the answers there, only the second half is left; with its record, none.
    folder = pushed["jobs"]["demo_choice"].removesuffix("/record.json")
    write_model(f"{folder}/generated.json", make_record("harness", "demo_choice"))
    _, pushed = plan()
    assert [(one["generate"], one["score"]["argv"][0]) for one in pushed["code"]] == [({}, "score")]
    write_model(f"{folder}/record.json", make_record("harness", "demo_choice"))
    assert plan()[1]["code"] == []


def test_finished_jobs_are_not_returned(plan):
    _, pushed = plan()
    for title in ("sample", "demo_choice"):
        stage, task = ("sample", None) if title == "sample" else ("harness", title)
        write_model(pushed["jobs"][title], make_record(stage, task))
    harness, again = plan()
    assert [job["task"] for job in harness] == ["demo_arithmetic", "demo_cloze"]
    assert again["sample"] == {}  # an XCom cannot be None
    assert again["judges"] == pushed["judges"]
    assert again["jobs"] == pushed["jobs"]  # the verdict checks all of them
    assert plan(force=True)[1]["sample"]


def test_some_parts(plan):
    harness, pushed = plan(tasks=["demo_cloze"])
    assert [job["task"] for job in harness] == ["demo_cloze"]
    assert (pushed["sample"], pushed["judges"]) == ({}, [{}])
    assert list(pushed["jobs"]) == ["demo_cloze"]


def test_another_judge(plan):
    (job,) = plan(judge="gpt-4.1-mini")[1]["judges"]
    assert "--judge=gpt-4.1-mini" in job["argv"]


def test_another_profile_is_that_of_all_stages_that_load_the_model(plan, tmp_path, monkeypatch):
    profiles = "{default: {}, large: {gpus: 2}, cpu: {}}"
    (tmp_path / "cluster.yaml").write_text(f"{{pools: {{gpu: 2, judge: 1}}, profiles: {profiles}}}")
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    usual, large = plan(), plan(profile="large")
    for (harness, pushed), profile in ((usual, "default"), (large, "large")):
        assert {job["profile"] for job in [*harness, pushed["sample"]]} == {profile}
        assert {job["profile"] for job in pushed["judges"]} == {"cpu"}
    assert usual[1]["jobs"] == large[1]["jobs"]  # the same fingerprints: a profile affects no score


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"checkpoint": "dpo"}, "NotRegistered: unknown checkpoint 'dpo'"),
        ({"suite": "nothing"}, "BadInput: unknown suite 'nothing'"),
        ({"tasks": ["mmlu"]}, "BadInput: suite demo has no mmlu"),
        ({"judge": "gpt-5"}, "BadInput: unknown judge 'gpt-5'"),
        ({"profile": "huge"}, "BadInput: unknown profile 'huge' in the cluster file; available: "),
    ],
)
@pytest.mark.parametrize("step", ["prepare", "plan"])
def test_errors_that_a_retry_cannot_fix_are_not_retried(plan, root, step, params, words):
    with pytest.raises(AirflowFailException) as caught:
        plan(**params) if step == "plan" else prepared(PARAMS | params)
    assert words in str(caught.value)
    assert not filesystem.exists(f"{root}/plans")


@pytest.fixture
def limit(tmp_path, monkeypatch):
    """``limit(text)`` writes a policy file with that limit for a run."""

    def limit(text):
        (tmp_path / "policy.yaml").write_text(f"limits: {{run: {text}}}\nrules: []")
        monkeypatch.setenv("HALOS_EVAL_POLICY", str(tmp_path / "policy.yaml"))

    return limit


@pytest.fixture
def evaluated(plan, tmp_path):
    """A finished checkpoint, each of whose jobs took an hour on a GPU."""
    make_checkpoint(tmp_path / "checkpoints" / "dpo" / "FINAL")
    _, pushed = plan(checkpoint="dpo")
    usage = Usage(load_seconds=600, work_seconds=3000, prompt_tokens=9, price_usd=2)
    for title, record in pushed["jobs"].items():
        stage = title if title in {"sample", "judge"} else "harness"
        same = {"provenance": make_provenance(outputs_sha256="o"), "files": {"outputs.json": "o"}}
        write_model(record, make_record(stage, usage=usage, **same))


def test_the_estimated_cost_is_shown(plan, caplog):
    caplog.set_level("INFO")
    _, pushed = plan(tasks=["demo_cloze"])
    assert pushed["cost"] == {"pods": 1, "gpu_hours": 0, "judge_dollars": 0, "unknown": ["demo_cloze"]}
    assert "estimated cost of this run: 1 pod, at least 0.00 GPU-hours and 0.00 USD" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{gpu_hours: 3}", "3.83 GPU-hours, 0.83 over the limit of 3. Select fewer parts"),
        ("{judge_dollars: 0.5}", "2.00 USD for the judge, 1.50 over the limit of 0.5"),
    ],
)
def test_over_the_limit_nothing_starts(plan, evaluated, limit, root, text, words):
    limit(text)
    with pytest.raises(AirflowFailException, match="BadInput: estimated cost: ") as caught:
        plan()
    assert words in str(caught.value)
    assert not filesystem.exists(layout.plan_url(root, "demo", "kto"))
    assert [job["task"] for job in plan(tasks=["demo_cloze"])[0]] == ["demo_cloze"]


@pytest.mark.parametrize("text", ["{}", "{gpu_hours: 4, judge_dollars: 2}"])
def test_up_to_the_limit_it_starts(plan, evaluated, limit, text):
    limit(text)
    harness, pushed = plan()
    assert len(harness) == 3
    # Four stages of an hour, of which two share a pod: 10 minutes of loading are saved.
    assert pushed["cost"].pop("gpu_hours") == pytest.approx(4 - 1 / 6)
    assert pushed["cost"] == {"pods": 4, "judge_dollars": 2, "unknown": []}
    assert plan(checkpoint="dpo")[1]["cost"]["pods"] == 0


@pytest.mark.parametrize(("text", "option"), [("{}", None), ("{judge_dollars: 2.5}", "--max-cost=2.5")])
def test_the_judge_stops_at_the_limit_as_well(plan, limit, text, option):
    """The estimate may be too low, or there is no history for one."""
    limit(text)
    _, pushed = plan()
    options = [word for word in pushed["judges"][0]["argv"] if word.startswith("--max-cost")]
    assert options == ([option] if option else [])
    assert pushed["judges"][0]["argv"][0] == "judge"
    assert not any("--max-cost" in word for word in pushed["sample"]["argv"])


@pytest.fixture
def batch(plan, tmp_path, monkeypatch):
    """``batch(judge, priority)`` returns whether the plan's judge uses batches, by a policy for all but manual runs."""
    (tmp_path / "policy.yaml").write_text("batch: [nightly, backfill]\nrules: []")
    monkeypatch.setenv("HALOS_EVAL_POLICY", str(tmp_path / "policy.yaml"))

    def batch(judge, priority="nightly"):
        monkeypatch.setattr(evaluate, "load_judge", lambda name: judge)
        _, pushed = plan(priority=priority)
        assert "--batch" not in pushed["sample"]["argv"]
        return "--batch" in pushed["judges"][0]["argv"]

    return batch


@pytest.mark.parametrize(("priority", "expected"), [("manual", False), ("nightly", True), ("backfill", True)])
def test_the_policy_says_whose_judges_use_batches(batch, priority, expected):
    assert batch(load_judge("gpt-4.1"), priority) == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"price_per_million_tokens": Price(input=0, output=0)},
        {"price_per_million_tokens": Price(input=1, output=1, batch=1)},
        {"completions_kwargs": {"model_name": "unpriced"}},
        {"client": Client(azure_endpoint="https://mine.openai.azure.com", api_version="2024-10-21")},
    ],
)
def test_a_judge_for_which_batches_save_nothing_uses_none(batch, changed):
    assert not batch(load_judge("gpt-4.1").model_copy(update=changed))


def test_several_judges_share_the_limit(plan, suite, limit, without_cache):
    suite("alpaca_eval: {prompts: demo, reference: demo, judge: [gpt-4.1, gpt-4.1-mini]}", "two")
    limit("{judge_dollars: 3}")
    _, pushed = plan(suite="two")
    assert [job["argv"][1] for job in pushed["judges"]] == ["--max-cost=1.5", "--max-cost=1.5"]


def test_a_judge_without_prices_has_no_limit_to_stop_at(plan, limit, monkeypatch):
    limit("{judge_dollars: 2.5}")
    unpriced = load_judge("demo").model_copy(update={"price_per_million_tokens": None})
    monkeypatch.setattr(evaluate, "load_judge", lambda name: unpriced)
    assert not any("--max-cost" in word for word in plan()[1]["judges"][0]["argv"])


def test_an_invalid_limit_is_not_ignored(plan, limit):
    limit("{hours: 3}")
    with pytest.raises(AirflowFailException, match="BadInput: policy"):
        plan()


def test_an_unavailable_store_is_retried(plan, tmp_path):
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("a file where a folder should be")
    with pytest.raises(StoreError):
        plan()
    with pytest.raises(StoreError):
        prepared(PARAMS)


def test_the_verdict_names_everything_that_is_missing(plan):
    _, pushed = plan()
    jobs = pushed["jobs"]
    for title in ("sample", "judge", "demo_choice"):
        write_model(jobs[title], make_record("sample"))
    write_failure(layout.failure_beside(jobs["demo_cloze"]), "no data", "DataUnavailable")
    with pytest.raises(AirflowFailException) as caught:
        evaluate.check(jobs, {})
    assert str(caught.value) == (
        "missing: demo_arithmetic (no result (not run, or killed)); demo_cloze (DataUnavailable: no data)"
    )
    for title in ("demo_arithmetic", "demo_cloze"):
        write_model(jobs[title], make_record(task=title))
        assert read_record(jobs[title])
    evaluate.check(jobs, {})
    with pytest.raises(AirflowFailException, match=r"^missing: gpqa \(unavailable: it is gated\)$"):
        evaluate.check(jobs, {"gpqa": "it is gated"})


def test_a_gate_is_part_of_the_table_s_job_and_its_outcome_decides(plan, root, tmp_path, monkeypatch):
    (tmp_path / "policy.yaml").write_text(
        "margin: 0.02\nrules: []\ngates: [{against: fixed, checkpoint: base, block: [demo_cloze]}]"
    )
    monkeypatch.setenv("HALOS_EVAL_POLICY", str(tmp_path / "policy.yaml"))
    outcome = GateOutcome(
        checkpoint="kto", suite="demo", rule="a fixed one", baseline="base", verdict=Verdict.WORSE,
        blocked=("demo_cloze",), warned=("demo_choice",), at=NOW,
        flips=(Flip(task="demo_cloze", id="7", a=0, b=1, answer_a="a secret text"),),
    )  # fmt: skip
    write_gate(root, outcome)
    _, pushed = plan()
    argv = pushed["summarize"]["argv"]
    assert '--gate={"against":"fixed","checkpoint":"base","block":["demo_cloze"]}' in argv
    assert "--margin=0.02" in argv
    assert pushed["gated"] is True
    # The plan removed the outcome of an earlier evaluation.
    with pytest.raises(AirflowFailException, match="the gate of the policy has no outcome"):
        evaluate.check({}, {}, "kto", "demo")
    write_gate(root, outcome)
    with pytest.raises(AirflowFailException) as caught:
        evaluate.check({}, {}, "kto", "demo")
    assert str(caught.value) == "worse than base in demo_cloze, which blocks (see the items demo_cloze 7)"
    write_gate(root, outcome.model_copy(update={"blocked": ()}))
    evaluate.check({}, {}, "kto", "demo")


def test_without_a_gate_nothing_is_compared(plan):
    _, pushed = plan()
    assert pushed["gated"] is False
    assert not any(word.startswith("--gate") for word in pushed["summarize"]["argv"])


@pytest.mark.parametrize(
    "task", [evaluate.prepare_evaluation, lambda params: evaluate.plan_evaluation(params, params["checkpoint"])]
)
def test_an_unavailable_registry_is_retried(root, monkeypatch, task):
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", "/nowhere.yaml")
    with pytest.raises(RegistryUnavailable):
        task(PARAMS)


def test_each_judge_is_a_job_and_the_verdict_names_the_one_that_failed(plan, suite, without_cache):
    suite("alpaca_eval: {prompts: demo, reference: demo, judge: [demo, gpt-4.1-mini]}", "two")
    _, pushed = plan(suite="two")
    assert [(job["judge"], job["label"]) for job in pushed["judges"]] == [
        ("demo", None),
        ("gpt-4.1-mini", "gpt-4.1-mini"),
    ]
    assert list(pushed["jobs"]) == ["sample", "judge", "judge@gpt-4.1-mini"]
    for title in ("sample", "judge"):
        write_model(pushed["jobs"][title], make_record(title))
    write_failure(layout.failure_beside(pushed["jobs"]["judge@gpt-4.1-mini"]), "no quota", "JudgeRefused")
    with pytest.raises(AirflowFailException) as caught:
        evaluate.check(pushed["jobs"], {})
    assert str(caught.value) == "missing: judge@gpt-4.1-mini (JudgeRefused: no quota)"
    _, one = plan(suite="two", judge="gpt-4.1-mini")
    assert list(one["jobs"]) == ["sample", "judge@gpt-4.1-mini"]
