"""### backfill_evaluation: one suite on many checkpoints

A dry run first: `find` logs what would be started and what is complete already. Then trigger it again with `dry_run`
off. Each checkpoint gets a run of `evaluate_checkpoint`, at most so many at a time; what is finished is not run again,
so a task that was added to a suite runs alone.

#### Triage
* **find failed**: the registry or the store cannot be read, or a param is wrong; the message names the remedy.
* **report failed**: its log is the message. Mend the reasons and trigger the backfill again: it does the rest.
* To stop a backfill mark its run failed: what was not started will not be. Runs that have begun go on.
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
        description="Names or patterns, one a line: llama3-*",
    ),
    "tags": Param(
        {},
        type="object",
        additionalProperties={"type": "string"},
        title="Tags",
        description='Only those with these tags, as JSON: {"method": "kto"}',
    ),
    "registered_from": Param(
        None,
        type=["string", "null"],
        format="date-time",
        title="Registered from",
        description="Only those registered then or later.",
    ),
    "registered_until": Param(
        None,
        type=["string", "null"],
        format="date-time",
        title="Registered before",
        description="Only those registered before.",
    ),
    "only_missing": Param(
        True,
        type="boolean",
        title="Only what is missing",
        description="Off: everything is run again.",
    ),
    "at_most": params.at_most(),
    "priority": params.priority("backfill"),
    "dry_run": Param(
        True,
        type="boolean",
        title="Dry run",
        description="Only tell what would be started.",
    ),
}


@dag(
    schedule=None,
    is_paused_upon_creation=False,  # what somebody triggers is run; nothing is started by itself
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
