"""Pool slots and priority of each task instance: a hook that Airflow's scheduler calls.

A DAG file can set the slots of a task only once. But the number of GPUs of a stage is known only after the plan. The
hook ``task_instance_mutation_hook`` sets both for each instance. Airflow finds it by the entry point ``airflow.policy``
of this package.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

from airflow import settings
from airflow.models.pool import Pool
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskreschedule import TaskReschedule
from airflow.models.xcom import XComModel
from airflow.policies import hookimpl
from airflow.utils.state import TaskInstanceState
from airflow.utils.types import DagRunType
from sqlalchemy import Connection, event, update
from sqlalchemy.orm import object_session

from halos_eval.config.cluster import BACKFILL_POOL, BACKFILL_SLOTS, CPU_PROFILE, GPU_POOL, JUDGE_POOL, Priority
from halos_eval.orchestration.names import AT_MOST, BACKFILL, EVALUATION, NIGHT

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun

GPU_TASKS = {"sample": "sampling", "judge": "judging", "harness": "plan", "code.harness": "coding", "pack": "packing"}
"""Mapped tasks that can hold GPUs, each with the task that returns its list of jobs."""
# Far enough apart that every task of a manual run comes before every nightly one, and that before every backfill's.
HIGHEST_WEIGHT: dict[Priority, int] = {"manual": 1_050_000_000, "nightly": 700_000_000, "backfill": 350_000_000}
LAST_RUN, LAST_JOB = 3_499_999, 99  # later runs and jobs share the last position
RETURNED = HIGHEST_WEIGHT["manual"]
"""What a task that returns from a triggerer weighs more than usual. Airflow's column ends at 2**31 - 1."""

# Without airflow_local_settings.py, Airflow assumes that there is no hook, and does not call it when it creates the
# task instances of a run.
settings.task_instance_mutation_hook.is_noop = False  # type: ignore[attr-defined]


@hookimpl
def task_instance_mutation_hook(task_instance: TaskInstance, dag_run: DagRun | None) -> None:
    """Set the pool slots and the priority of a stage, or of a task that starts an evaluation in a backfill."""
    if dag_run is not None and dag_run.dag_id == EVALUATION:
        _evaluation(task_instance, dag_run)
    elif dag_run is not None and task_instance.task_id == "evaluate" and _is_backfill(dag_run):
        _backfill(task_instance, dag_run)


@event.listens_for(TaskInstance.state, "set")
def _return(task_instance: TaskInstance, state: object, _before: object, _initiator: object) -> None:
    """Let a task that returns from a triggerer go first, whatever the priority of its run.

    Airflow does not count its slots while it is scheduled (https://github.com/apache/airflow/issues/69187), and would
    let it wait behind unstarted tasks of a higher priority (https://github.com/apache/airflow/issues/57210). As the
    first in order it gets the slots back that it had, so its GPUs are given to nobody else before it has ended.
    """
    # This is called for the tasks of all DAGs, also if they have no session to load from: read only what is needed.
    if state not in (TaskInstanceState.SCHEDULED, TaskInstanceState.UP_FOR_RETRY) or task_instance.dag_id != EVALUATION:
        return
    weight = task_instance.priority_weight or 0
    if state == TaskInstanceState.UP_FOR_RETRY:
        _take_back(task_instance)
    elif task_instance.state == TaskInstanceState.DEFERRED and weight <= RETURNED:
        task_instance.priority_weight = RETURNED + weight


@event.listens_for(TaskInstance.id, "set")
def _next_try(task_instance: TaskInstance, new: object, before: object, _initiator: object) -> None:
    """Give a task that is retried its usual place: it holds no GPUs.

    Airflow's execution API sets the state of a retry without an event. But each try gets an ID of its own.
    """
    if isinstance(before, UUID) and before != new and task_instance.dag_id == EVALUATION:
        _take_back(task_instance)


@event.listens_for(TaskReschedule, "after_insert")
def _wait(_mapper: object, connection: Connection, reschedule: TaskReschedule) -> None:
    """Give a task that is rescheduled its usual place. Airflow's execution API sets this state without an event too."""
    weight = TaskInstance.priority_weight
    ours = (TaskInstance.id == reschedule.ti_id, TaskInstance.dag_id == EVALUATION, weight > RETURNED)
    connection.execute(update(TaskInstance).where(*ours).values(priority_weight=weight - RETURNED))


def _take_back(task_instance: TaskInstance) -> None:
    weight = task_instance.priority_weight or 0
    if weight > RETURNED:
        task_instance.priority_weight = weight - RETURNED


def _is_backfill(dag_run: DagRun) -> bool:
    return dag_run.dag_id == BACKFILL or (dag_run.dag_id == NIGHT and dag_run.run_type == DagRunType.BACKFILL_JOB)


def _backfill(task_instance: TaskInstance, dag_run: DagRun) -> None:
    """Limit how many evaluations of a backfill run at the same time: each holds its slots until its run ends."""
    at_most = (dag_run.conf or {}).get("at_most")
    if not isinstance(at_most, int) or not 1 <= at_most <= BACKFILL_SLOTS:  # not set, or Airflow rejects the run
        at_most = AT_MOST
    task_instance.pool = BACKFILL_POOL
    task_instance.pool_slots = backfill_slots(at_most)
    task_instance.priority_weight = HIGHEST_WEIGHT["backfill"] - _position(dag_run.id, task_instance.map_index)


def backfill_slots(at_most: int) -> int:
    """Return the slots of each evaluation, so that at most ``at_most`` of them run at the same time."""
    return ceil(BACKFILL_SLOTS / at_most)


def _evaluation(task_instance: TaskInstance, dag_run: DagRun) -> None:
    priority = (dag_run.conf or {}).get("priority", "manual")
    if priority in get_args(Priority):  # Airflow rejects other values, but may call the hook before
        task_instance.priority_weight = HIGHEST_WEIGHT[priority] - _position(dag_run.id, task_instance.map_index)
    if task_instance.task_id in GPU_TASKS and task_instance.map_index >= 0:
        # An instance of an earlier plan may have no job, and an empty job has nothing to do: neither needs a GPU.
        jobs = dict(enumerate(_jobs(dag_run, GPU_TASKS[task_instance.task_id])))
        job = jobs.get(task_instance.map_index) or {}
        job = job.get("generate", job)
        # A pack has the slots of its stages. But one that is cleared does its work itself.
        if job.get("packed") and task_instance.state is None:
            job = {}
        task_instance.pool = _pool(task_instance.task_id, job)
        task_instance.pool_slots = max(1, job.get("gpus", 1)) if job else 1


def _pool(task_id: str, job: dict[str, Any]) -> str:
    """Return the pool of a job. A judge needs GPUs only if its model is served beside it."""
    if job and task_id == "judge" and not job.get("server"):
        return JUDGE_POOL
    if not job or job.get("profile") == CPU_PROFILE:
        return str(Pool.DEFAULT_POOL_NAME)
    return str(job.get("pool") or GPU_POOL)


def _position(run: int, map_index: int) -> int:
    """Return the position in the queue: by run, then by job, so that the first run is complete first."""
    return min(run, LAST_RUN) * (LAST_JOB + 1) + min(map_index + 1, LAST_JOB)


def _jobs(dag_run: DagRun, task_id: str) -> list[dict[str, Any]]:
    """Return the jobs that ``task_id`` returned; none while it runs again.

    Use the scheduler's session, because Airflow forbids a new one here.
    """
    query = XComModel.get_many(
        run_id=dag_run.run_id, key="return_value", task_ids=task_id, dag_ids=dag_run.dag_id, limit=1
    )
    session = object_session(dag_run)
    if session is None:
        raise RuntimeError("the DAG run has no database session; expected the scheduler's, to read the plan's GPUs")
    found = session.scalars(query).one_or_none()
    return list(XComModel.deserialize_value(found)) if found else []
