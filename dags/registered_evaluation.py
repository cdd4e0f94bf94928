"""### registered_evaluation: a registration starts the evaluation at once

Unpause it, and let whatever registers a checkpoint create an event of the asset `checkpoint_registered`, with the
checkpoint's name as its partition key. Each event is a run, also in a burst. The event only wakes it: what is known of
the checkpoint comes from the registry, and the policy file says which suites it gets. The night finds it as well, and
what has been started is not started again.

#### Triage
* **find failed**: the registry does not know the checkpoint, or it is not complete. Create the event again when it is;
  if nobody does, the night finds it.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, PartitionedAssetTimetable, dag, task

from halos_eval.orchestration.defaults import DEFAULT_ARGS
from halos_eval.orchestration.find import find_for_registration
from halos_eval.orchestration.triggers import evaluate_each


@dag(
    schedule=PartitionedAssetTimetable(assets=Asset("checkpoint_registered")),
    catchup=False,
    is_paused_upon_creation=True,  # an option: the night does without
    max_active_runs=64,
    tags=["evaluation"],
    doc_md=__doc__,
    default_args=DEFAULT_ARGS,
)
def registered_evaluation() -> None:
    """Declare the tasks."""

    @task
    def find() -> list[dict[str, Any]]:
        return find_for_registration()

    evaluate_each(find())


registered_evaluation()
