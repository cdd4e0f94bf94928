"""### nightly_evaluation: checkpoints registered since the previous night

`find` asks the registry for the checkpoints of the night's interval and for late ones of the days before. The policy
file gives their suites. `evaluate` starts one run of `evaluate_checkpoint` for each checkpoint and suite. `wait` waits
until all runs have ended. `report` sends the message, and fails if a run failed. A run's name is derived from the
checkpoint, its registration and the suite, so you can repeat a night without evaluating anything twice.

Backfill: `airflow backfill create --dag-id nightly_evaluation --from-date 2026-10-01 --to-date 2026-11-01`. Each of
these nights takes its own interval only. It has the lowest priority, and evaluates four checkpoints at the same time
(change it with `--dag-run-conf '{"at_most": 8}'`).

#### Triage
* **find failed**: the registry or the store is unreadable, or the policy file is wrong. The message names the remedy.
  Clear the task, or do nothing: the next night finds the same checkpoints.
* **evaluate is skipped**: that run exists already.
* **report failed**: its log is the message, with the reasons. Clear the failed tasks in the runs that it names.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import dag, task

from halos_eval.orchestration import params
from halos_eval.orchestration.defaults import DEFAULT_ARGS, nights
from halos_eval.orchestration.find import find_for_night
from halos_eval.orchestration.triggers import evaluate_each, wait_and_report


@dag(
    schedule=nights(),
    start_date=datetime(2024, 1, 1, tzinfo=UTC),  # the earliest night of a backfill
    catchup=False,
    is_paused_upon_creation=True,  # it runs only after somebody has unpaused it
    params={"at_most": params.at_most()},
    tags=["evaluation"],
    doc_md=__doc__,
    default_args=DEFAULT_ARGS,
)
def nightly_evaluation() -> None:
    """Declare the tasks."""

    @task
    def find() -> list[dict[str, Any]]:
        return find_for_night()

    wait_and_report(evaluate_each(find()))


nightly_evaluation()
