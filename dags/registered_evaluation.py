"""### registered_evaluation: an evaluation at registration

Unpause the DAG. Then let your training pipeline create an event of the asset `checkpoint_registered`, with the
checkpoint's name as its partition key. Each event is one run, even if many arrive at once. The event is only a trigger.
`find` reads the checkpoint from the registry and its suites from the policy file. The nightly DAG does not repeat these
runs. While the DAG is paused, events wait. Those that are older than an hour when it is unpaused start nothing and are
left to the next night.

#### Triage
* **find succeeded, but nothing was evaluated**: its log has the reason, such as an event that is too old.
* **find failed**: the registry does not know the checkpoint, or it is incomplete. Create the event again once it is
  complete. Otherwise the next night finds the checkpoint.
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
    is_paused_upon_creation=True,  # optional: the nightly DAG does not need it
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
