"""### nightly_evaluation: what was registered since yesterday, once

`find` asks the registry for the checkpoints of the night's interval and of some days before it, and the policy file
which suites they get; `evaluate` starts one run of `evaluate_checkpoint` for each; `wait` until all have ended;
`report` sends the message, and is red if something is missing. A run's name is made of the checkpoint, the time of its
registration and the suite: however often a night is run again, nothing is evaluated twice.

Backfill: `airflow backfill create --dag-id nightly_evaluation --from-date 2026-10-01 --to-date 2026-11-01`. Its nights
take their own interval only, at the lowest priority, four checkpoints at a time (`--dag-run-conf '{"at_most": 8}'`).

#### Triage
* **find failed**: the registry or the store cannot be read, or the policy file is wrong; the message names the remedy.
  Clear it, or leave it: the next night looks back.
* **evaluate is skipped**: that run is there already.
* **report failed**: its log is the message: which checkpoint lacks what, and why. Clear what failed in those runs.
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
    start_date=datetime(2024, 1, 1, tzinfo=UTC),  # how far a backfill may go
    catchup=False,
    is_paused_upon_creation=True,  # nothing is evaluated by itself until somebody says so
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
