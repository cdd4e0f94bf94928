"""Every DAG file: it loads, documents its triage, and rejects harmful params."""

from __future__ import annotations

import copy
import json
import re
from datetime import timedelta
from types import SimpleNamespace
from typing import get_args

import jsonschema
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import timezone
from airflow.sdk.definitions.xcom_arg import PlainXComArg
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization
from jinja2 import Environment, StrictUndefined

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.config.cluster import Priority
from halos_eval.config.suite import load_suite
from halos_eval.orchestration.failures import RETRY_POLICY
from halos_eval.orchestration.local import LocalStageOperator
from halos_eval.orchestration.pods import PodStageOperator
from halos_eval.shipped import shipped
from halos_eval.storage.layout import safe_name
from tests.doubles import make_checkpoint
from tests.test_policies import DAGS

BAG = DagBag(str(DAGS[0].parent), collect_dags=True)
EVALUATE = "evaluate_checkpoint"
CODE = ["code.harness", "code.score"]
STAGES = ["fetch", "sample", "judge", "harness", *CODE, "summarize"]
CLUSTER = """
pools: {gpu: 8, judge: 1}
profiles: {default: {gpus: 1}, cpu: {}}
kubernetes:
  namespace: the-namespace
  images: {worker: "docker.io/worker:1", judge: "docker.io/judge:1"}
  serviceAccountName: stage
  secrets: {OPENAI_API_KEY: {name: the-secret, key: api-key}}
"""
HARMFUL = ["../x", "/etc", "a;b", "$(x)", "`x`", "{{ x }}", "--force", "-x", ".hidden", "", "a\x00"]
UNUSUAL = ["a b", "é", "a__b", "llama3-8b_sft+kto", "lr=1e-6, beta=0.1"]  # names of checkpoints, not of others


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``load(text)`` reads the DAGs with a cluster file of that text."""

    def load(text):
        if text is not None:
            (tmp_path / "cluster.yaml").write_text(text)
        monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
        monkeypatch.setenv("HALOS_EVAL_STORE", "s3://evaluations")
        return DagBag(str(DAGS[0].parent), collect_dags=True)

    return load


@pytest.fixture
def remote_dag(load):
    """The DAG on a cluster."""
    return load(CLUSTER).dags[EVALUATE]


@pytest.fixture(params=sorted(BAG.dags))
def any_dag(request):
    return BAG.dags[request.param]


@pytest.fixture
def dag():
    return copy.deepcopy(BAG.dags[EVALUATE])  # a param keeps the value that was checked last


def test_every_file_loads():
    assert BAG.import_errors == {}
    assert len(BAG.dags) >= len(DAGS)
    assert EVALUATE in BAG.dags


def test_every_dag_has_tags_and_an_owner(any_dag):
    assert any_dag.tags
    assert {task.owner for task in any_dag.tasks} == {"halos-eval"}


def test_every_dag_documents_its_triage(any_dag):
    assert "#### Triage" in any_dag.doc_md
    assert any_dag.dag_id in any_dag.doc_md


def test_every_dag_retries_and_does_not_catch_up(any_dag):
    assert not any_dag.catchup
    assert all(task.retries for task in any_dag.tasks)


def test_every_parameter_has_a_title_and_a_description(any_dag):
    for name in any_dag.params:
        param = any_dag.params.get_param(name)
        assert param.description, name
        assert param.schema.get("title"), name


def test_a_file_declares_and_reads_nothing():
    for path in DAGS:
        source = path.read_text()
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE))
        assert imported <= {"__future__", "airflow", "datetime", "halos_eval", "typing"}
        assert "Settings" not in source


def check(dag, **values):
    """Validate ``values`` as the trigger form does."""
    for name, value in values.items():
        dag.params.get_param(name).resolve(value)


def refused(dag, **values):
    with pytest.raises((ParamValidationError, ValueError, jsonschema.ValidationError)):
        check(dag, **values)


def test_the_suites_to_choose_from_are_the_shipped_ones(dag):
    examples = dag.params.get_param("suite").schema["examples"]
    assert sorted(examples) == sorted(path.stem for path in shipped("suites").glob("*.yaml"))
    assert all(load_suite(name) for name in examples)
    assert dag.params["suite"] in examples


def test_the_judges_to_choose_from_are_the_shipped_ones(dag):
    examples = dag.params.get_param("judge").schema["examples"]
    assert sorted(examples) == sorted(path.stem for path in shipped("judges").glob("*.yaml"))


def test_the_profiles_to_choose_from_are_those_of_the_cluster_file(load):
    cluster = CLUSTER.replace("default: {gpus: 1}", "default: {gpus: 1}, large: {gpus: 8}")
    param = load(cluster).dags[EVALUATE].params.get_param("profile")
    assert param.schema["examples"] == ["default", "large"]
    assert param.value is None


@pytest.mark.parametrize("word", HARMFUL)
@pytest.mark.parametrize("name", ["checkpoint", "suite", "judge", "profile", "tasks"])
def test_harmful_values_are_rejected(dag, name, word):
    refused(dag, **{name: [word] if name == "tasks" else word})


@pytest.mark.parametrize("word", UNUSUAL)
def test_unusual_values_are_names_of_checkpoints_only(dag, word):
    check(dag, checkpoint=word)
    check(dag, checkpoint=f"{word}/step-100")


@pytest.mark.parametrize("value", ["a/../b", "a//b", "a/", "a/-x", "a/.x", "a[1]", "a*", "a:b"])
def test_harmful_paths_are_rejected(dag, value):
    refused(dag, checkpoint=value)


@pytest.mark.parametrize("value", ["mmlu", {"a": 1}, [1], [["a"]]])
def test_tasks_are_a_list_of_names(dag, value):
    refused(dag, tasks=value)


def test_the_checkpoint_is_needed(dag):
    refused(dag, checkpoint=None)
    with pytest.raises(ParamValidationError):
        dag.params.validate()


def test_usual_values_are_accepted(dag):
    check(dag, checkpoint="llama3-8b_kto.v2", suite="halos", tasks=["mmlu", "alpaca_eval"], judge=None, force=True)
    check(dag, checkpoint="team/kto/FINAL", suite="my-own_suite", tasks=None, judge="gpt-4.1", force=False)
    check(dag, tasks=["egymmlu_arabic_language_(general)"])
    check(dag, tasks=[])


def test_every_listed_checkpoint_is_accepted(dag, tmp_path):
    for name in ("llama3-8b_kto.v2", "0", "A-b_c.d", "a__b", ".x", "a b", "sft+kto"):
        make_checkpoint(tmp_path / name / "FINAL")
    names = {one.name for one in FolderRegistry(str(tmp_path)).registered().checkpoints}
    assert names == {"0", "A-b_c.d", "llama3-8b_kto.v2", *map(safe_name, ("a__b", "a b", "sft+kto"))}
    for name in names:
        check(dag, checkpoint=name)


def test_the_shape(dag):
    below = {task.task_id: task.downstream_task_ids for task in dag.tasks}
    assert below == {
        "prepare": {"fetch", "plan"},
        "fetch": {"plan"},
        "plan": {"sampling", "coding", "judging", "packing", "harness", "summarize", "verdict"},
        "packing": {"pack", "summarize"},
        "pack": {"summarize"},
        "coding": {"code.harness", "code.score"},
        "code.harness": {"code.score"},
        "code.score": {"summarize"},
        "sampling": {"sample"},
        "judging": {"judge"},
        "sample": {"judge"},
        "judge": {"summarize"},
        "harness": {"summarize"},
        "summarize": {"verdict"},
        "verdict": set(),
    }


def test_the_summary_is_made_whatever_fails_but_not_without_a_plan(dag):
    summarize = dag.get_task("summarize")
    assert summarize.is_teardown
    setups = [task.task_id for task in dag.tasks if task.is_setup]
    assert setups == ["packing"]  # not the plan, which would be made again for each task that is cleared
    assert set(setups) <= summarize.upstream_task_ids
    assert dag.get_task("packing").upstream_task_ids == {"plan"}
    assert summarize.max_active_tis_per_dag == 1


def test_a_run_fails_unless_the_verdict_succeeds(dag):
    assert [task.task_id for task in dag.leaves] == ["verdict"]
    assert dag.get_task("verdict").trigger_rule == "all_success"
    assert not dag.get_task("verdict").is_teardown


def test_stages_are_limited_by_their_pools(dag):
    assert {task.task_id: task.pool for task in dag.tasks} == dict.fromkeys(dag.task_ids, "default_pool") | {
        "pack": "halos_eval_gpu",
        "sample": "halos_eval_gpu",
        "harness": "halos_eval_gpu",
        "code.harness": "halos_eval_gpu",
        "judge": "halos_eval_judge",
    }
    # Mapped, those of code as a group: their pool slots are set then (tests/orchestration/test_scheduling.py).
    assert {task.task_id for task in dag.tasks if task.is_mapped} == {"pack", "sample", "harness", "judge"}


@pytest.mark.parametrize(
    ("job", "name"),
    [
        ({"judge": "/suites/our_judge.yaml", "label": None, "server": []}, "our_judge.yaml"),
        ({"judge": "gpt-4.1"}, "gpt-4.1"),
        ({"judge": '{"model":"lab/judge"}', "label": None, "server": ["serve", "lab/judge"]}, "served"),
        ({"judge": '{"model":"lab/judge"}', "label": "judge", "server": ["serve", "lab/judge"]}, "judge"),
        ({}, ""),
    ],
)
def test_each_judge_is_a_task_instance_with_its_name(dag, job, name):
    template = dag.get_task("judge").partial_kwargs["map_index_template"]
    environment = Environment(undefined=StrictUndefined, autoescape=False)  # Airflow's
    assert environment.from_string(template).render(task=SimpleNamespace(job=job)) == name


@pytest.mark.parametrize("checkpoint", ["team/kto/step-10", "/".join(["x" * 255] * 4)])
def test_each_evaluation_of_a_night_is_a_task_instance_with_a_name_that_fits_in_airflows_column(checkpoint):
    template = BAG.dags["nightly_evaluation"].get_task("evaluate").partial_kwargs["map_index_template"]
    task = SimpleNamespace(conf={"checkpoint": checkpoint})
    assert Environment(autoescape=False).from_string(template).render(task=task) == checkpoint[:250]


def test_every_stage_waits_for_success_but_the_summary(dag):
    rules = {task.task_id: task.trigger_rule for task in dag.tasks}
    assert rules == dict.fromkeys(dag.task_ids, "all_success") | {
        "plan": "all_done_min_one_success",
        "summarize": "all_done_setup_success",
    }


def test_the_plan_needs_prepare_but_not_fetch(dag):
    """The rule needs one success. Without `prepare`, `fetch` cannot succeed either."""
    assert dag.get_task("plan").upstream_task_ids == {"prepare", "fetch"}
    assert dag.get_task("fetch").upstream_task_ids == {"prepare"}


def test_a_manifest_is_written_by_one_run_at_a_time(dag):
    assert dag.get_task("fetch").max_active_tis_per_dag == 1


def test_failures_are_retried_with_back_off(any_dag):
    for task in any_dag.tasks:
        assert task.retry_policy is RETRY_POLICY
        assert task.retries == 4
        assert task.retry_delay == timedelta(seconds=30)
        assert task.retry_exponential_backoff == 2
        assert task.max_retry_delay == timedelta(minutes=30)


def test_a_runs_priority(dag):
    assert dag.params["priority"] == "manual"
    for value in get_args(Priority):
        check(dag, priority=value)
    for value in ("soon", "", None, 1):
        refused(dag, priority=value)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("where", ["process", "pod"])
def test_what_a_stage_runs_as(dag, remote_dag, where, name):
    task = (remote_dag if where == "pod" else dag).get_task(name)
    operator = task.operator_class if task.is_mapped else type(task)
    assert operator is (PodStageOperator if where == "pod" else LocalStageOperator)


def test_it_is_the_same_dag_on_a_cluster(dag, remote_dag):
    def settings(one):
        return {
            task.task_id: (task.pool, task.trigger_rule, task.retries, task.is_mapped, sorted(task.downstream_task_ids))
            for task in one.tasks
        }

    assert settings(remote_dag) == settings(dag)


def test_the_serialized_dag_contains_nothing_of_the_cluster(remote_dag):
    kept = json.dumps(DagSerialization.to_dict(remote_dag))
    assert "PodStageOperator" in kept
    for word in ("the-namespace", "docker.io/worker:1", "OPENAI_API_KEY", "the-secret"):
        assert word not in kept


@pytest.mark.parametrize("text", ["{pools: {gpu: 0}}", "a: [", None])
def test_an_invalid_cluster_file_is_an_import_error(load, tmp_path, text):
    bag = load(text)
    assert bag.dags.keys().isdisjoint({EVALUATE})
    words = bag.import_errors[str(DAGS[0].parent / f"{EVALUATE}.py")]
    assert "BadInput" in words
    assert f"cluster file {tmp_path}/cluster.yaml" in words


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("where", ["process", "pod"])
def test_the_strings_of_a_job_are_not_rendered(dag, remote_dag, where, name, monkeypatch):
    dag = remote_dag if where == "pod" else dag
    job = {"stage": "harness", "task": "{{ 1 + 1 }}", "argv": ["{{ 1 + 1 }}"]}
    mapped = {"sample": [job], "judge": [job], "harness": [job]} | {
        one: [{"generate": job, "score": job}] for one in CODE
    }
    monkeypatch.setattr(PlainXComArg, "resolve", lambda *_: mapped.get(name, job))
    task = copy.copy(dag.get_task(name))
    run = SimpleNamespace(conf={"checkpoint": "kto"})
    context = {"ti": SimpleNamespace(map_index=0), "task": task, "dag": dag, "dag_run": run}
    task.render_template_fields(context)
    assert context["task"].job == job  # Airflow puts the expanded task into the context


NIGHT, BACKFILL, REGISTERED = "nightly_evaluation", "backfill_evaluation", "registered_evaluation"


@pytest.mark.parametrize("name", [NIGHT, BACKFILL])
def test_the_message_is_sent_whatever_happened(name):
    dag = BAG.dags[name]
    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == {
        "find": {"evaluate"},
        "evaluate": {"wait"},
        "wait": {"report"},
        "report": set(),
    }
    assert {task.task_id for task in dag.tasks if task.trigger_rule == "all_done"} == {"wait", "report"}


@pytest.mark.parametrize("name", [NIGHT, BACKFILL, REGISTERED])
def test_runs_that_exist_are_not_started_again(name):
    evaluate = BAG.dags[name].get_task("evaluate")
    assert evaluate.partial_kwargs["trigger_dag_id"] == EVALUATE
    assert evaluate.partial_kwargs["skip_when_already_exists"]
    assert evaluate.partial_kwargs["deferrable"]


def test_no_dag_starts_by_itself_before_it_is_unpaused(any_dag):
    by_itself = {NIGHT, REGISTERED}
    assert any_dag.is_paused_upon_creation is (any_dag.dag_id in by_itself)  # unset, Airflow pauses it


def test_nights_have_intervals_one_after_the_other():
    dag = DagSerialization.from_dict(DagSerialization.to_dict(BAG.dags[NIGHT]))
    infer = dag.timetable.infer_manual_data_interval
    first, last = (infer(run_after=timezone.datetime(2026, 11, day, 12)) for day in (23, 24))
    assert first.start < first.end == last.start < last.end == timezone.datetime(2026, 11, 23, 20)


@pytest.mark.parametrize("word", [*HARMFUL, "*/../*"])
def test_harmful_patterns_are_rejected_or_match_names_only(word):
    dag = BAG.dags[BACKFILL]
    refused(dag, suite=word)
    if word not in {"../x", "/etc", "--force", "-x", ".hidden", "*/../*"}:  # a pattern is compared with names
        refused(dag, match=[word])


def test_usual_backfills_are_accepted():
    dag = BAG.dags[BACKFILL]
    assert (dag.params["dry_run"], dag.params["priority"]) == (True, "backfill")
    check(dag, suite="halos", match=["llama3-*", "team/kto/[12]?"], tags={"method": "kto"}, at_most=60, dry_run=False)
    check(dag, registered_from="2026-10-01T00:00:00Z", registered_until=None, priority="manual")
    for wrong in ({"match": []}, {"match": "*"}, {"tags": {"a": 1}}, {"at_most": 0}, {"at_most": 61}, {"dry_run": 1}):
        refused(dag, **wrong)
