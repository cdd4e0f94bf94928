"""The scheduler's hook, applied to real task instances in a database."""

from __future__ import annotations

import importlib.metadata
from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from airflow import settings
from airflow.api_fastapi.execution_api.datamodels.taskinstance import TIRescheduleStatePayload, TIRetryStatePayload
from airflow.api_fastapi.execution_api.routes.task_instances import ti_update_state
from airflow.dag_processing.dagbag import DagBag
from airflow.executors.base_executor import BaseExecutor
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.models.dag import DagModel
from airflow.models.dagbag import DBDagBag
from airflow.models.dagbundle import DagBundleModel
from airflow.models.pool import Pool
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.models.taskmap import TaskMap
from airflow.models.taskreschedule import TaskReschedule
from airflow.models.trigger import Trigger
from airflow.models.xcom import XComModel
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, timezone
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.triggers.base import TriggerEvent
from airflow.utils.db import synchronize_log_template
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, delete, inspect, select
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from halos_eval.config.cluster import BACKFILL_POOL, BACKFILL_SLOTS, Pools
from halos_eval.orchestration import scheduling
from halos_eval.orchestration.scheduling import HIGHEST_WEIGHT
from tests.test_policies import DAGS

EVALUATE = "evaluate_checkpoint"
UNMAPPED = {"prepare", "fetch", "plan", "sampling", "judging", "coding", "summarize", "verdict"}


@pytest.fixture(scope="module")
def engine():
    """A metadata database in memory, with our DAGs and one DAG that is not ours."""
    import_all_models()
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    dags = DagBag(str(DAGS[0].parent), collect_dags=True).dags.values()
    with DAG("other", schedule=None) as other:
        EmptyOperator(task_id="sample")
    with Session(engine) as session:
        synchronize_log_template(session=session)
        session.add(DagBundleModel(name="testing"))
        session.flush()
        for one in (*dags, other):
            written = LazyDeserializedDAG.from_dag(one)
            SerializedDAG.bulk_write_to_db("testing", None, [written], session=session)
            SerializedDagModel.write_dag(written, bundle_name="testing", session=session)
        session.commit()
    return engine


@pytest.fixture
def session(engine):
    with Session(engine) as session:
        yield session


@pytest.fixture
def start(session):
    """``start(priority=...)`` creates a run with its task instances, as the scheduler or the API does."""

    def start(dag_id=EVALUATE, run_id="one", run_type=DagRunType.MANUAL, **conf):
        dag = SerializedDagModel.get_dag(dag_id, session=session)
        run = dag.create_dagrun(
            run_id=run_id,
            logical_date=None,
            data_interval=None,
            run_after=timezone.utcnow(),
            run_type=run_type,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            conf={"checkpoint": "kto"} | conf,
            session=session,
        )
        session.flush()
        return run

    return start


@pytest.fixture
def expand(session):
    """``expand(run, task, jobs)`` returns the instances of a mapped task for a list of jobs."""

    def expand(run, task_id, jobs):
        returned_by = (scheduling.GPU_TASKS | {"judge": "judging"})[task_id]
        XComModel.set("return_value", jobs, dag_id=run.dag_id, task_id=returned_by, run_id=run.run_id, session=session)
        session.add(TaskMap(run.dag_id, returned_by, run.run_id, -1, len(jobs), None))
        session.flush()
        TaskMap.expand_mapped_task(run.dag.get_task(task_id), run.run_id, session=session)
        return instances(session, run, task_id)

    return expand


def instances(session, run, task_id):
    found = session.scalars(
        select(TaskInstance).where(TaskInstance.task_id == task_id, TaskInstance.run_id == run.run_id)
    )
    return sorted(found, key=lambda one: one.map_index)


def weights(session, run):
    """Return the priority weight of each task of a run."""
    return {one.task_id: one.priority_weight for one in run.get_task_instances(session=session)}


def test_airflow_finds_it():
    [entry] = importlib.metadata.entry_points(group="airflow.policy", name="halos-eval")
    assert entry.load() is scheduling
    assert scheduling in settings.get_policy_plugin_manager().get_plugins()


@pytest.mark.parametrize("priority", ["manual", "nightly", "backfill"])
def test_every_task_of_a_run_has_its_priority(start, session, priority):
    run = start(priority=priority)
    found = weights(session, run)
    assert found.keys() >= UNMAPPED | scheduling.GPU_TASKS.keys()
    assert set(found.values()) == {HIGHEST_WEIGHT[priority] - 100 * run.id}


def test_a_run_without_a_priority_is_manual(start, session):
    run = start()
    assert set(weights(session, run).values()) == {HIGHEST_WEIGHT["manual"] - 100 * run.id}


def test_a_task_that_has_run_comes_before_those_that_have_not_started(start, expand):
    """It needs its slots once more, to store the result. Earlier runs come first, then earlier jobs."""
    first, second = start(run_id="first"), start(run_id="second")
    found = [one.priority_weight for run in (first, second) for one in expand(run, "harness", [{"gpus": 1}] * 3)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 6


@given(st.integers(1, 10**9), st.integers(-1, 10**4))
def test_a_position_never_reaches_the_next_priority(run, map_index):
    least = HIGHEST_WEIGHT["backfill"]
    assert 0 < least - scheduling._position(run, map_index) <= least  # the distance between two priorities
    assert HIGHEST_WEIGHT["manual"] - HIGHEST_WEIGHT["nightly"] == HIGHEST_WEIGHT["nightly"] - least == least
    assert HIGHEST_WEIGHT["manual"] < 2**31  # Airflow's column


def test_priority_is_manual_then_nightly_then_backfill(start, session):
    last, middle, first = (
        weights(session, start(run_id=priority, priority=priority)) for priority in ("backfill", "nightly", "manual")
    )
    assert max(last.values()) < min(middle.values()) <= max(middle.values()) < min(first.values())


@pytest.mark.parametrize("priority", ["soon", None, 5, ["manual"], {}])
def test_an_invalid_priority_is_rejected_and_changes_no_weight(start, session, priority):
    with pytest.raises(ParamValidationError):
        start(priority=priority)
    run = start()
    run.conf = {"priority": priority}
    [found] = instances(session, run, "fetch")
    found.priority_weight = 7
    scheduling.task_instance_mutation_hook(found, run)
    assert found.priority_weight == 7


def test_each_judge_takes_one_slot_of_its_pool(start, expand):
    found = expand(start(priority="nightly"), "judge", [{"judge": "gpt-4.1"}, {"judge": "ours.yaml"}])
    assert [(one.map_index, one.pool, one.pool_slots) for one in found] == [
        (0, "halos_eval_judge", 1),
        (1, "halos_eval_judge", 1),
    ]
    assert found[0].priority_weight > found[1].priority_weight > HIGHEST_WEIGHT["backfill"]


def test_each_job_takes_its_gpus_from_the_pool(start, expand):
    jobs = [{"task": "mmlu", "gpus": 4}, {"task": "arc_easy", "gpus": 0}, {"task": "gsm8k_cot", "gpus": 1}]
    found = expand(start(priority="nightly"), "harness", jobs)
    assert [one.pool_slots for one in found] == [4, 1, 1]
    assert {one.pool for one in found} == {"halos_eval_gpu"}
    assert all(one.priority_weight < HIGHEST_WEIGHT["nightly"] for one in found)


def test_sampling_takes_its_gpus_from_the_pool(start, expand):
    [found] = expand(start(), "sample", [{"gpus": 2}])
    assert (found.map_index, found.pool, found.pool_slots) == (0, "halos_eval_gpu", 2)


def test_generating_answers_takes_gpus_but_not_copying_or_scoring_them(start, expand, session):
    run = start()
    generating = {"generate": {"gpus": 2, "profile": "default"}, "score": {"gpus": 0, "profile": "cpu"}}
    copying = generating | {"generate": {"gpus": 0, "profile": "cpu"}}
    found = expand(run, "code.harness", [generating, copying, generating | {"generate": {}}])
    slots = [(one.pool, one.pool_slots) for one in found]
    assert slots == [("halos_eval_gpu", 2), ("default_pool", 1), ("default_pool", 1)]
    TaskMap.expand_mapped_task(run.dag.get_task("code.score"), run.run_id, session=session)
    scoring = instances(session, run, "code.score")
    assert [(one.pool, one.pool_slots) for one in scoring] == [("default_pool", 1)] * 3


def test_a_stage_with_nothing_to_do_does_not_wait_for_gpus(start, expand):
    [found] = expand(start(), "sample", [{}])
    assert (found.map_index, found.pool, found.pool_slots) == (0, "default_pool", 1)


def test_a_judge_takes_gpus_only_if_its_model_is_served(start, expand):
    served = {"gpus": 2, "server": ["serve", "--", "/models/judge"]}
    found = expand(start(), "judge", [{"gpus": 0, "server": []}, served, served | {"gpus": 0}])
    assert [(one.pool, one.pool_slots) for one in found] == [
        ("halos_eval_judge", 1), ("halos_eval_gpu", 2), ("halos_eval_gpu", 1),
    ]  # fmt: skip


def test_an_unmapped_task_takes_one_slot(start, session):
    run = start()
    assert {one.pool_slots for task_id in UNMAPPED for one in instances(session, run, task_id)} == {1}


@pytest.mark.parametrize(("minutes", "ready"), [(20, False), (-1, True)])
def test_a_judge_that_waits_for_a_batch_is_not_started_before_its_time(start, session, minutes, ready):
    """Airflow 3.3 keeps the time of any operator; earlier versions only that of sensors."""
    run = start()
    for one in run.get_task_instances(session=session):
        one.state = TaskInstanceState.SUCCESS
    [found] = instances(session, run, "judge")
    now = timezone.utcnow()
    found.state = TaskInstanceState.UP_FOR_RESCHEDULE
    session.add(TaskReschedule(found.id, now, now, now + timedelta(minutes=minutes)))
    session.flush()
    found.task = run.dag.get_task("judge")
    assert found.are_dependencies_met(session=session) == ready


def test_a_cleared_task_keeps_its_gpus(start, expand, session):
    run = start(priority="nightly")
    found = expand(run, "harness", [{"gpus": 4}, {"gpus": 2}])
    for one in found:
        one.state = TaskInstanceState.FAILED
        one.pool_slots = one.priority_weight = 1
    clear_task_instances(found, session)
    assert [one.pool_slots for one in found] == [4, 2]
    assert all(HIGHEST_WEIGHT["backfill"] < one.priority_weight < HIGHEST_WEIGHT["nightly"] for one in found)


@pytest.mark.parametrize("jobs", [None, [], [{"gpus": 2}]])
def test_a_plan_that_is_made_again_does_not_stop_the_scheduler(start, expand, session, jobs):
    """The instances of the old jobs still exist, although the new plan may have fewer jobs."""
    run = start()
    found = expand(run, "harness", [{"gpus": 2}, {"gpus": 4}])
    session.execute(delete(XComModel))
    if jobs is not None:
        XComModel.set("return_value", jobs, dag_id=EVALUATE, task_id="plan", run_id=run.run_id, session=session)
    for one in found:
        one.state = TaskInstanceState.FAILED
    clear_task_instances(found, session)
    run.verify_integrity(session=session, dag_version_id=run.created_dag_version_id)
    assert [one.pool_slots for one in found] == [2 if jobs else 1, 1]


def test_other_dags_are_not_changed(start, session):
    run = start("other", priority="backfill")
    [found] = instances(session, run, "sample")
    assert (found.pool_slots, found.priority_weight, found.pool) == (1, 1, "default_pool")


def test_an_instance_without_its_run_is_not_changed(start, session):
    [found] = instances(session, start(), "fetch")
    found.priority_weight = 7
    scheduling.task_instance_mutation_hook(found, None)
    assert found.priority_weight == 7


@given(st.integers(1, BACKFILL_SLOTS))
def test_the_slots_of_a_backfill_admit_at_most_that_many_and_at_least_one(at_most):
    slots = scheduling.backfill_slots(at_most)
    assert 1 <= BACKFILL_SLOTS // slots <= at_most


@pytest.mark.parametrize(("conf", "slots"), [({}, 15), ({"at_most": 1}, 60), ({"at_most": 60}, 1)])
def test_a_backfill_takes_its_slots(start, session, conf, slots):
    night = start("nightly_evaluation", run_type=DagRunType.BACKFILL_JOB, **conf)
    asked = start("backfill_evaluation", run_id="two", suite="quick", **conf)
    for run in (night, asked):
        (task,) = instances(session, run, "evaluate")
        assert (task.pool, task.pool_slots) == (BACKFILL_POOL, slots)
        assert 0 < task.priority_weight < HIGHEST_WEIGHT["backfill"]
        (find,) = instances(session, run, "find")
        assert find.pool == "default_pool"


def test_a_backfill_of_more_runs_than_airflow_expands_by_default(start, session):
    run, count = start("backfill_evaluation", suite="quick", at_most=20), 1025
    session.add(TaskMap(run.dag_id, "find", run.run_id, -1, count, None))
    session.flush()
    TaskMap.expand_mapped_task(run.dag.get_task("evaluate"), run.run_id, session=session)
    found = instances(session, run, "evaluate")
    assert [one.map_index for one in found] == list(range(count))
    assert {(one.pool, one.pool_slots) for one in found} == {(BACKFILL_POOL, 3)}


@pytest.mark.parametrize("run_type", [DagRunType.MANUAL, DagRunType.SCHEDULED])
def test_a_regular_night_is_not_limited(start, session, run_type):
    (task,) = instances(session, start("nightly_evaluation", run_type=run_type), "evaluate")
    assert (task.pool, task.pool_slots) == ("default_pool", 1)


@pytest.mark.parametrize("at_most", [0, 61, "4", None, 2.5])
def test_an_invalid_at_most_does_not_stop_the_scheduler(at_most):
    run = SimpleNamespace(dag_id="backfill_evaluation", conf={"at_most": at_most}, id=1)
    task = SimpleNamespace(task_id="evaluate", map_index=-1, pool="default_pool")
    scheduling.task_instance_mutation_hook(task, run)
    assert task.pool == BACKFILL_POOL
    assert task.pool_slots == 15


# The scheduler's own choice of the tasks that it starts


@pytest.fixture
def choose(session, monkeypatch):
    """``choose(most)`` lets the scheduler choose once, and returns what it queued: run and task."""
    executor = BaseExecutor(parallelism=100)
    executor.name = "local"
    runner = SchedulerJobRunner(job=SimpleNamespace(id=None, job_type=None), executors=[executor])
    monkeypatch.setattr(runner, "_try_to_load_executor", lambda *_, **__: executor)
    for dag in session.scalars(select(DagModel)):
        dag.is_paused, dag.max_active_tasks = False, 1000

    def choose(most=100):
        session.flush()
        found = [(one.run_id, one.task_id) for one in runner._executable_task_instances_to_queued(most, session)]
        session.expire_all()
        return found

    return choose


@pytest.fixture
def pools(session):
    """``pools(gpu=...)`` creates the pools as `airflow pools import` does, and Airflow's own."""

    def pools(gpu):
        for name, pool in Pools(gpu=gpu, judge=1).document().items():
            session.add(Pool(pool=name, slots=pool["slots"], include_deferred=pool["include_deferred"]))
        session.add(Pool(pool="default_pool", slots=128, include_deferred=False))

    return pools


def fire(session, task_instance):
    """Let the trigger of a deferred task fire, as the triggerer does."""
    trigger = Trigger("a.Trigger", {})
    session.add(trigger)
    session.flush()
    task_instance.state, task_instance.trigger_id = TaskInstanceState.DEFERRED, trigger.id
    task_instance.next_method, task_instance.next_kwargs = "trigger_reentry", {}
    session.flush()
    Trigger.submit_event(trigger.id, TriggerEvent({"status": "success"}), session=session)


@pytest.mark.parametrize(("gpus", "slots"), [(1, 1), (4, 4)])
def test_a_task_that_returns_gets_its_gpus_back_before_all_others(start, expand, session, choose, pools, gpus, slots):
    """Airflow does not count them while it is scheduled, and would give them to the run with the higher priority."""
    pools(slots)
    (returning,) = expand(start(run_id="night", priority="nightly"), "harness", [{"gpus": gpus}])
    waiting = expand(start(run_id="manual", priority="manual"), "harness", [{"gpus": 1}] * 4)
    for one in waiting:
        one.state = TaskInstanceState.SCHEDULED
    fire(session, returning)
    assert returning.state == TaskInstanceState.SCHEDULED
    assert choose() == [("night", "harness")]


def test_those_that_return_keep_their_order_and_fit_the_column(start, expand, session):
    runs = [start(run_id=priority, priority=priority) for priority in ("manual", "nightly", "backfill")]
    found = [expand(run, "harness", [{"gpus": 1}])[0] for run in runs]
    for one in found:
        for _ in range(3):  # more often than once
            fire(session, one)
    weights = [one.priority_weight for one in found]
    assert weights == sorted(weights, reverse=True)
    assert HIGHEST_WEIGHT["manual"] < min(weights) <= max(weights) < 2**31


def test_a_cleared_task_that_had_returned_has_its_usual_place(start, expand, session):
    (found,) = expand(start(priority="nightly"), "harness", [{"gpus": 1}])
    usual = found.priority_weight
    fire(session, found)
    found.state = TaskInstanceState.FAILED
    clear_task_instances([found], session)
    assert found.priority_weight == usual


def retry(session, task_instance):
    """Let a try fail, as its worker tells Airflow's API."""
    report(session, task_instance, TIRetryStatePayload(state="up_for_retry", end_date=timezone.utcnow()))


def reschedule(session, task_instance):
    """Let a task end that waits for a batch, as its worker tells Airflow's API."""
    now = timezone.utcnow()
    times = {"end_date": now, "reschedule_date": now - timedelta(minutes=1)}
    report(session, task_instance, TIRescheduleStatePayload(state="up_for_reschedule", **times))


def report(session, task_instance, payload):
    with patch.object(session, "commit", session.flush), session.no_autoflush:  # Airflow's sessions have no autoflush
        ti_update_state(task_instance.id, payload, session, DBDagBag())


def kill(session, task_instance):
    """Let a worker die, as the scheduler notices."""
    TaskInstance.fetch_handle_failure_context(task_instance, "no heartbeat", session=session)


def kill_queued(session, task_instance):
    """Let a task end before its worker has started, as the scheduler notices."""
    task_instance.state = TaskInstanceState.QUEUED
    session.flush()
    kill(session, task_instance)


@pytest.mark.parametrize("end", [retry, reschedule, kill, kill_queued])
def test_a_task_that_is_retried_has_its_usual_place(start, expand, session, choose, pools, end):
    """It has no GPUs any more, so it waits as one that has not started."""
    pools(1)
    run = start(run_id="back", priority="backfill")
    (found,) = expand(run, "harness", [{"gpus": 1}])
    waiting = expand(start(run_id="manual", priority="manual"), "harness", [{"gpus": 1}] * 4)
    usual = found.priority_weight
    fire(session, found)
    assert found.priority_weight > usual
    found.state, found.max_tries = TaskInstanceState.RUNNING, 4
    session.flush()
    end(session, found)
    session.flush()
    session.expire_all()
    assert found.state in {"up_for_retry", "up_for_reschedule"}
    assert found.priority_weight == usual
    found.task = run.dag.get_task("harness")
    assert run.schedule_tis([found], session=session) == 1
    for one in waiting:
        one.state = TaskInstanceState.SCHEDULED
    assert choose() == [("manual", "harness")]


def test_another_state_is_set_without_a_look_at_the_database(start, session):
    """What an instance without a session has not loaded before, it cannot load."""
    [found] = instances(session, start("other"), "sample")
    session.expire(found)
    session.expunge(found)
    found.state = TaskInstanceState.RUNNING
    assert found.state == TaskInstanceState.RUNNING


def test_only_an_evaluation_loads_more_than_the_name_of_its_dag(start, session):
    [found] = instances(session, start("other"), "sample")
    session.expire(found, ["state", "priority_weight"])
    found.state = TaskInstanceState.SCHEDULED
    assert "priority_weight" in inspect(found).unloaded


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_backlog_for_gpus_does_not_starve_other_pools(start, expand, session, choose, pools, gpus):
    """The scheduler looks at 16 tasks at a time: a full pool must not fill them, nor one that is too small for more."""
    pools(3)
    for one in expand(start(run_id="backlog", priority="manual"), "harness", [{"gpus": gpus}] * 90):
        one.state = TaskInstanceState.SCHEDULED
    last = start(run_id="last", priority="backfill")
    [plan] = instances(session, last, "plan")
    plan.state = TaskInstanceState.SCHEDULED
    assert ("last", "plan") in [*choose(16), *choose(16)]


# Large stages beside small ones


@pytest.fixture
def started(session, start, expand, choose):
    """``started(pools, rounds)`` returns in which round a stage with 4 GPUs starts; stages with one never run out.

    In each round one of those that run ends. None: the large stage has not started.
    """

    def job(pools, gpus):
        return {"gpus": gpus, "pool": pools.of(gpus)}

    def started(pools, rounds):
        for name, pool in pools.document().items():
            session.add(Pool(pool=name, slots=pool["slots"], include_deferred=True))
        small = expand(start(run_id="small"), "harness", [job(pools, 1)] * (rounds + pools.gpu))
        running = []
        for one in small:
            one.state = TaskInstanceState.SCHEDULED
        for number in range(rounds):
            if number == 1:  # all GPUs that they may have are in use
                (large,) = expand(start(run_id="large", priority="manual"), "sample", [job(pools, 4)])
                large.state, large.priority_weight = TaskInstanceState.SCHEDULED, HIGHEST_WEIGHT["manual"] + 1
            choose()
            for one in session.scalars(select(TaskInstance).where(TaskInstance.state == TaskInstanceState.QUEUED)):
                one.state = TaskInstanceState.RUNNING
                if one.run_id == "large":
                    return number
                running.append(one)
            assert running
            running.pop(0).state = TaskInstanceState.SUCCESS
        return None

    return started


def test_airflow_alone_lets_a_large_stage_wait_for_ever(started):
    """If this fails, Airflow has learned to keep slots free, and reserved pools are no longer needed."""
    assert started(Pools(gpu=8, judge=1), rounds=30) is None


def test_a_large_stage_starts_at_once_on_the_gpus_that_are_reserved_for_its_size(started):
    assert started(Pools(gpu=8, judge=1, reserved={4: 4}), rounds=30) == 1


def test_small_stages_do_not_take_reserved_gpus(start, expand):
    pools = Pools(gpu=8, judge=1, reserved={4: 4, 2: 2})
    jobs = [{"gpus": gpus, "pool": pools.of(gpus)} for gpus in (1, 2, 3, 4)]
    found = expand(start(), "harness", jobs)
    assert [one.pool for one in found] == ["halos_eval_gpu", "halos_eval_gpu_2", "halos_eval_gpu", "halos_eval_gpu_4"]
    assert {name: pool["slots"] for name, pool in pools.document().items() if "gpu" in name} == {
        "halos_eval_gpu": 2,
        "halos_eval_gpu_2": 2,
        "halos_eval_gpu_4": 4,
    }


def test_a_pack_takes_gpus_and_its_stages_only_once_they_are_cleared(start, expand, session):
    run = start()
    (pack,) = expand(run, "pack", [{"gpus": 2}])
    assert (pack.pool, pack.pool_slots) == ("halos_eval_gpu", 2)
    found = expand(run, "harness", [{"gpus": 2, "packed": {"pack": 0}}, {"gpus": 2, "packed": None}])
    assert [(one.pool, one.pool_slots) for one in found] == [("default_pool", 1), ("halos_eval_gpu", 2)]
    for one in found:
        one.state = TaskInstanceState.FAILED
    clear_task_instances(found, session)
    assert [(one.pool, one.pool_slots) for one in found] == [("halos_eval_gpu", 2)] * 2
