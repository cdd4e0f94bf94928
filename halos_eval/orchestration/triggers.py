"""From what is found to runs of ``evaluate_checkpoint``: the same operator in every DAG that starts some."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, task
from airflow.sdk.definitions.mappedoperator import MappedOperator

from halos_eval.cluster import BACKFILL_SLOTS
from halos_eval.orchestration import names
from halos_eval.orchestration.selecting import all_ended, send_report

AT_MOST = Param(
    names.AT_MOST,
    type="integer",
    minimum=1,
    maximum=BACKFILL_SLOTS,
    title="At most",
    description="Older checkpoints that are evaluated at the same time.",
)


def evaluate_each(found: Any) -> MappedOperator:
    """The task that starts a run for each that ``find`` has found; a run that is there already is left as it is."""
    return TriggerDagRunOperator.partial(
        task_id="evaluate",
        trigger_dag_id=names.EVALUATION,
        # Two runs of a DAG may not have the same logical date, and these are started within a second.
        logical_date=None,
        skip_when_already_exists=True,
        # Where it waits for the run's end, it holds a slot of its pool and no worker.
        deferrable=True,
        poke_interval=30,
        # How the run ended is for the message; a retry of this task would find the run there, and skip.
        allowed_states=["success", "failed"],
        failed_states=[],
        # The run's conf is what we say.
        openlineage_inject_parent_info=False,
        map_index_template="{{ task.conf['checkpoint'] }}",
    ).expand_kwargs(found)


def wait_and_report(evaluate: MappedOperator) -> None:
    """Two more tasks: until all has ended, or it is time for the message; and the message, whatever happened."""

    @task.sensor(mode="reschedule", poke_interval=60, trigger_rule="all_done")
    def wait() -> bool:
        return all_ended()

    @task(trigger_rule="all_done")
    def report() -> None:
        send_report()

    evaluate >> wait() >> report()
