"""The tasks ``evaluate``, ``wait`` and ``report``, which several DAGs share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import BaseOperator, Context, task
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent
from airflow.utils.state import DagRunState

from halos_eval.orchestration.names import EVALUATION
from halos_eval.orchestration.report import runs_open, send_report, time_left
from halos_eval.reports.message import PENDING

POLL = 10
"""Seconds between two checks of a run's state."""
ENDED = [DagRunState.SUCCESS, DagRunState.FAILED]
AT_ONCE = 100
"""Runs in one request to Airflow, because the names of all runs of a night do not fit."""


def evaluate_each(found: Any) -> MappedOperator:
    """Return the task that starts a run for each evaluation in ``found``. It skips runs that exist."""
    return TriggerDagRunOperator.partial(
        task_id="evaluate",
        trigger_dag_id=EVALUATION,
        # These runs start within a second, and two runs of a DAG must not have the same logical date.
        logical_date=None,
        skip_when_already_exists=True,
        # While it waits for the end of the run, it holds a slot of its pool but no worker.
        deferrable=True,
        poke_interval=POLL,
        # A failed run must not fail this task: a retry would find that the run exists, and skip. `report` fails then.
        allowed_states=ENDED,
        failed_states=[],
        # OpenLineage must not add keys to the run's conf.
        openlineage_inject_parent_info=False,
        map_index_template="{{ task.conf['checkpoint'][:250] }}",  # Airflow's column takes no more
    ).expand_kwargs(found)


class RunsEndedTrigger(BaseTrigger):
    """Fires when none of the runs is open. Airflow's DagStateTrigger would wait for ever for a run that is deleted."""

    def __init__(self, run_ids: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_ids = run_ids

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for Airflow's database."""
        return f"{RunsEndedTrigger.__module__}.{RunsEndedTrigger.__qualname__}", {"run_ids": self.run_ids}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until all have ended."""
        while await asyncio.to_thread(
            RuntimeTaskInstance.get_dr_count, dag_id=EVALUATION, run_ids=self.run_ids, states=sorted(PENDING)
        ):
            await asyncio.sleep(POLL)
        yield TriggerEvent({})  # type: ignore[no-untyped-call]


class RunsEnded(BaseOperator):
    """Operator that waits, without a worker, until the selected runs have ended or message_after_hours is over."""

    def execute(self, context: Context) -> None:
        """Check the runs, and defer if some are open. Wait for the first ones only, see ``AT_ONCE``."""
        open_ones, left = runs_open(), time_left()
        if open_ones and left <= timedelta():
            self.log.warning("message_after_hours is over; %d runs have not ended", len(open_ones))
        elif open_ones:
            self.defer(
                trigger=RunsEndedTrigger(open_ones[:AT_ONCE]),
                method_name="look_again",
                timeout=left,  # Airflow then retries this task, which finds that the time is over
            )

    def look_again(self, context: Context, event: object) -> None:
        """Check again after some runs have ended."""
        self.execute(context)


def wait_and_report(evaluate: MappedOperator) -> None:
    """Add the tasks ``wait`` and ``report`` after ``evaluate``. Both run whatever failed before them."""

    @task(trigger_rule="all_done")
    def report() -> None:
        send_report()

    evaluate >> RunsEnded(task_id="wait", trigger_rule="all_done") >> report()
