"""### backfill_evaluation: one suite on many checkpoints

It starts with a dry run: `find` logs the runs that it would start, and the checkpoints that are complete. Then trigger
the DAG again with `dry_run` off. Each checkpoint gets a run of `evaluate_checkpoint`; `at_most` limits how many are
evaluated at the same time. Finished work is not run again. If you added a task to a suite, only that task runs.

#### Triage
* **find failed**: the registry or the store is unreadable, or a param is wrong. The message names the remedy.
* **report failed**: its log is the message. Fix the reasons and trigger the backfill again; it runs only the rest.
* To stop a backfill, mark its run as failed. It starts no further runs. Runs that have started continue.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from halos_eval.orchestration import params
from halos_eval.orchestration.defaults import DEFAULT_ARGS
from halos_eval.orchestration.find import find_for_backfill
from halos_eval.orchestration.triggers import evaluate_each, wait_and_report

PARAMS = {
    "suite": params.suite(),
    "match": Param(
        ["*"],
        type="array",
        items={"type": "string", "pattern": r"^[][A-Za-z0-9._/*?!-]+$"},
        minItems=1,
        title="Checkpoints",
        description="Names or patterns, one per line: llama3-*",
    ),
    "tags": Param(
        {},
        type="object",
        additionalProperties={"type": "string"},
        title="Tags",
        description='Only checkpoints with these tags, as JSON: {"method": "kto"}',
    ),
    "registered_from": Param(
        None,
        type=["string", "null"],
        format="date-time",
        title="Registered from",
        description="Only checkpoints registered at this time or later.",
    ),
    "registered_until": Param(
        None,
        type=["string", "null"],
        format="date-time",
        title="Registered before",
        description="Only checkpoints registered before this time.",
    ),
    "only_missing": Param(
        True,
        type="boolean",
        title="Only what is missing",
        description="Run only what has no result. Off: run everything again.",
    ),
    "at_most": params.at_most(),
    "priority": params.priority("backfill"),
    "dry_run": Param(
        True,
        type="boolean",
        title="Dry run",
        description="Log the runs and start none.",
    ),
}


@dag(
    schedule=None,
    is_paused_upon_creation=False,  # it runs only if somebody triggers it
    params=PARAMS,
    catchup=False,
    tags=["evaluation"],
    doc_md=__doc__,
    default_args=DEFAULT_ARGS,
)
def backfill_evaluation() -> None:
    """Declare the tasks."""

    @task
    def find() -> list[dict[str, Any]]:
        return find_for_backfill()

    wait_and_report(evaluate_each(find()))


backfill_evaluation()
