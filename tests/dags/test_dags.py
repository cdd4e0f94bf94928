"""Every DAG file: it loads, it says whom to ask and what to do, and its form takes no harmful word."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import jsonschema
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.definitions.xcom_arg import PlainXComArg
from airflow.sdk.exceptions import ParamValidationError

from halos_eval.registry.folders import FolderRegistry
from halos_eval.settings import shipped
from halos_eval.suite import load_suite
from tests.doubles import make_checkpoint
from tests.test_policies import DAGS, imports_of

BAG = DagBag(str(DAGS[0].parent), collect_dags=True)
EVALUATE = "evaluate_checkpoint"
HARMFUL = ["../x", "/etc", "a;b", "a b", "$(x)", "`x`", "{{ x }}", "--force", "-x", ".hidden", "", "a\x00", "é"]


@pytest.fixture(params=sorted(BAG.dags))
def any_dag(request):
    return BAG.dags[request.param]


@pytest.fixture
def dag():
    return BAG.dags[EVALUATE]


def test_every_file_loads():
    assert BAG.import_errors == {}
    assert len(BAG.dags) >= len(DAGS)
    assert EVALUATE in BAG.dags


def test_every_dag_has_tags_and_an_owner(any_dag):
    assert any_dag.tags
    assert {task.owner for task in any_dag.tasks} == {"halos-eval"}


def test_every_dag_tells_what_to_do(any_dag):
    assert "#### Triage" in any_dag.doc_md
    assert any_dag.dag_id in any_dag.doc_md


def test_every_dag_tries_again_and_does_not_catch_up(any_dag):
    assert not any_dag.catchup
    assert all(task.retries for task in any_dag.tasks)


def test_every_parameter_has_a_title_and_a_description(any_dag):
    for name in any_dag.params:
        param = any_dag.params.get_param(name)
        assert param.description, name
        assert param.schema.get("title"), name


def test_a_file_declares_and_reads_nothing():
    for path in DAGS:
        assert imports_of(path.read_text()) <= {"__future__", "airflow", "datetime", "halos_eval", "typing"}
        assert "Settings" not in path.read_text()


def check(dag, **values):
    """What the form says of ``values``."""
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
    assert sorted(examples) == sorted(path.stem for path in shipped("annotators").glob("*.yaml"))


@pytest.mark.parametrize("word", HARMFUL)
@pytest.mark.parametrize("name", ["checkpoint", "suite", "judge", "tasks"])
def test_harmful_words_are_refused(dag, name, word):
    refused(dag, **{name: [word] if name == "tasks" else word})


@pytest.mark.parametrize("value", ["a/../b", "a//b", "a/", "a/-x", "a/.x"])
def test_harmful_paths_are_refused(dag, value):
    refused(dag, checkpoint=value)


@pytest.mark.parametrize("value", ["mmlu", {"a": 1}, [1], [["a"]]])
def test_tasks_are_a_list_of_names(dag, value):
    refused(dag, tasks=value)


def test_the_checkpoint_is_needed(dag):
    refused(dag, checkpoint=None)
    with pytest.raises(ParamValidationError):
        dag.params.validate()


def test_usual_values_are_taken(dag):
    check(dag, checkpoint="llama3-8b_kto.v2", suite="halos", tasks=["mmlu", "alpaca_eval"], judge=None, force=True)
    check(dag, checkpoint="team/kto/FINAL", suite="my-own_suite", tasks=None, judge="gpt-4.1", force=False)
    check(dag, tasks=[])


def test_every_checkpoint_that_is_listed_can_be_asked_for(dag, tmp_path):
    for name in ("llama3-8b_kto.v2", "0", "A-b_c.d", "a__b", ".x", "a b"):
        make_checkpoint(tmp_path / name / "FINAL")
    names = [one.name for one in FolderRegistry(str(tmp_path)).registered().checkpoints]
    assert sorted(names) == ["0", "A-b_c.d", "llama3-8b_kto.v2"]
    for name in names:
        check(dag, checkpoint=name)


def test_the_shape(dag):
    below = {task.task_id: task.downstream_task_ids for task in dag.tasks}
    assert below == {
        "plan": {"sampling", "judge", "harness", "summarize", "verdict"},
        "sampling": {"sample"},
        "sample": {"judge"},
        "judge": {"summarize"},
        "harness": {"summarize"},
        "summarize": {"verdict"},
        "verdict": set(),
    }


def test_the_summary_is_made_whatever_fails_but_not_without_a_plan(dag):
    summarize = dag.get_task("summarize")
    assert summarize.is_teardown
    assert dag.get_task("plan").is_setup
    assert "plan" in summarize.upstream_task_ids
    assert summarize.max_active_tis_per_dag == 1


def test_a_run_is_red_unless_the_verdict_is_good(dag):
    assert [task.task_id for task in dag.leaves] == ["verdict"]
    assert dag.get_task("verdict").trigger_rule == "all_success"
    assert not dag.get_task("verdict").is_teardown


@pytest.mark.parametrize("name", ["sample", "judge", "harness", "summarize"])
def test_the_strings_of_a_job_are_not_rendered(dag, name, monkeypatch):
    job = {"stage": "harness", "task": "{{ 1 + 1 }}", "argv": ["{{ 1 + 1 }}"]}
    monkeypatch.setattr(PlainXComArg, "resolve", lambda *_: [job] if name in {"sample", "harness"} else job)
    task = copy.copy(dag.get_task(name))
    run = SimpleNamespace(conf={"checkpoint": "kto"})
    context = {"ti": SimpleNamespace(map_index=0), "task": task, "dag": dag, "dag_run": run}
    task.render_template_fields(context)
    assert context["task"].job == job  # a mapped task puts the one that runs into the context
