"""What Airflow's scheduler asks us about each task instance: how many GPUs it takes, and how urgent it is.

A pool counts slots, and a task's slots are fixed when its DAG is read; how many GPUs a stage takes is known only when
it has been planned. Airflow's cluster policy may set both for each instance. Registered as the entry point
``airflow.policy`` of this package.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, get_args

from airflow import settings
from airflow.models.pool import Pool
from airflow.models.xcom import XComModel
from airflow.policies import hookimpl
from airflow.utils.types import DagRunType
from sqlalchemy.orm import object_session

from halos_eval.config.cluster import BACKFILL_POOL, BACKFILL_SLOTS, GPU_POOL, Priority
from halos_eval.orchestration.names import AT_MOST, BACKFILL, EVALUATION, NIGHT

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance

GPU_TASKS = {"sample": "sampling", "harness": "plan"}
"""Mapped tasks that hold GPUs, and the task whose list of jobs each is expanded over."""
# Every task of a manual run comes before every task of a nightly one, and those before a backfill's.
CLASSES: dict[Priority, int] = {"manual": 1_500_000_000, "nightly": 1_000_000_000, "backfill": 500_000_000}
LAST_RUN, LAST_JOB = 4_999_999, 99  # whatever comes later has the same place

# Where there is no airflow_local_settings.py, Airflow believes that there is no hook, and leaves it out when it makes
# the task instances of a run.
settings.task_instance_mutation_hook.is_noop = False  # type: ignore[attr-defined]


@hookimpl
def task_instance_mutation_hook(task_instance: TaskInstance, dag_run: DagRun | None) -> None:
    """Set the pool slots and the priority of a stage, or of a task that starts an evaluation in a backfill."""
    if dag_run is not None and dag_run.dag_id == EVALUATION:
        _evaluation(task_instance, dag_run)
    elif dag_run is not None and task_instance.task_id == "evaluate" and _is_backfill(dag_run):
        _backfill(task_instance, dag_run)


def _is_backfill(dag_run: DagRun) -> bool:
    return dag_run.dag_id == BACKFILL or (dag_run.dag_id == NIGHT and dag_run.run_type == DagRunType.BACKFILL_JOB)


def _backfill(task_instance: TaskInstance, dag_run: DagRun) -> None:
    """It holds its slots while the run that it has started lasts: so there are at most so many at a time."""
    at_most = (dag_run.conf or {}).get("at_most")
    if not isinstance(at_most, int) or not 1 <= at_most <= BACKFILL_SLOTS:  # the default, or a run that is refused
        at_most = AT_MOST
    task_instance.pool = BACKFILL_POOL
    task_instance.pool_slots = backfill_slots(at_most)
    task_instance.priority_weight = CLASSES["backfill"] - _place(dag_run.id, task_instance.map_index)


def backfill_slots(at_most: int) -> int:
    """Slots that each evaluation of a backfill takes, so that there are at most so many at a time."""
    return ceil(BACKFILL_SLOTS / at_most)


def _evaluation(task_instance: TaskInstance, dag_run: DagRun) -> None:
    asked = (dag_run.conf or {}).get("priority", "manual")
    if asked in get_args(Priority):  # a run with anything else is refused, but perhaps not yet
        task_instance.priority_weight = CLASSES[asked] - _place(dag_run.id, task_instance.map_index)
    if task_instance.task_id in GPU_TASKS and task_instance.map_index >= 0:
        # An instance that is left from an earlier plan has no job, and an empty job has nothing to do.
        jobs = dict(enumerate(_jobs(dag_run, GPU_TASKS[task_instance.task_id])))
        job = jobs.get(task_instance.map_index)
        task_instance.pool = GPU_POOL if job else Pool.DEFAULT_POOL_NAME
        task_instance.pool_slots = max(1, job["gpus"]) if job else 1


def _place(run: int, map_index: int) -> int:
    """The place in the queue: runs in their order, and the jobs of a run in theirs.

    A task whose pod has ended needs its slots once more, to note the result. Without an order it could wait for hours
    behind tasks that have not started yet.
    """
    return min(run, LAST_RUN) * (LAST_JOB + 1) + min(map_index + 1, LAST_JOB)


def _jobs(dag_run: DagRun, task_id: str) -> list[dict[str, Any]]:
    """The jobs that ``task_id`` has returned, none while it is run again.

    Read in the scheduler's own session: a new one is forbidden here.
    """
    query = XComModel.get_many(
        run_id=dag_run.run_id, key="return_value", task_ids=task_id, dag_ids=dag_run.dag_id, limit=1
    )
    session = object_session(dag_run)
    if session is None:
        raise RuntimeError("the DAG run came without its session: how many GPUs a stage takes cannot be read")
    found = session.scalars(query).one_or_none()
    return list(XComModel.deserialize_value(found)) if found else []
