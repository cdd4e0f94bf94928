"""From what is found to runs of ``evaluate_checkpoint``: the same operator in every DAG that starts some."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.triggers.external_task import DagStateTrigger
from airflow.sdk import BaseOperator, Context, task
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.utils.state import DagRunState

from halos_eval.orchestration.find import runs_open, send_report, time_left
from halos_eval.orchestration.names import EVALUATION

POLL = 10
"""Seconds between two looks at a run's state."""
ENDED = [DagRunState.SUCCESS, DagRunState.FAILED]
AT_ONCE = 100
"""Runs that are asked for in one request."""


def evaluate_each(found: Any) -> MappedOperator:
    """The task that starts a run for each that ``find`` has found; a run that is there already is left as it is."""
    return TriggerDagRunOperator.partial(
        task_id="evaluate",
        trigger_dag_id=EVALUATION,
        # Two runs of a DAG may not have the same logical date, and these are started within a second.
        logical_date=None,
        skip_when_already_exists=True,
        # Where it waits for the run's end, it holds a slot of its pool and no worker.
        deferrable=True,
        poke_interval=POLL,
        # How the run ended is for the message; a retry of this task would find the run there, and skip.
        allowed_states=ENDED,
        failed_states=[],
        # The run's conf is what we say.
        openlineage_inject_parent_info=False,
        map_index_template="{{ task.conf['checkpoint'] }}",
    ).expand_kwargs(found)


class RunsEnded(BaseOperator):
    """Wait, without a worker, until the runs that were started have ended, or it is time for the message."""

    def execute(self, context: Context) -> None:
        """Look, and wait for some that are open: all of a night's names do not fit into one request."""
        open_ones, left = runs_open(), time_left()
        if open_ones and left <= timedelta():
            self.log.warning("it is time for the message, and %d have not ended", len(open_ones))
        elif open_ones:
            self.defer(
                trigger=DagStateTrigger(
                    dag_id=EVALUATION,
                    states=ENDED,
                    run_ids=open_ones[:AT_ONCE],
                    poll_interval=POLL,
                ),
                method_name="look_again",
                timeout=left,  # then it is tried again, and sees that it is time
            )

    def look_again(self, context: Context, event: object) -> None:
        """Some have ended."""
        self.execute(context)


def wait_and_report(evaluate: MappedOperator) -> None:
    """Two more tasks: until all has ended, or it is time for the message; and the message, whatever happened."""

    @task(trigger_rule="all_done")
    def report() -> None:
        send_report()

    evaluate >> RunsEnded(task_id="wait", trigger_rule="all_done") >> report()
