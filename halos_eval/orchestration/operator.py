"""The choice of operator: stages run as pods if the cluster file has the key kubernetes, otherwise as processes."""

from __future__ import annotations

from airflow.sdk import BaseOperator

from halos_eval.config.cluster import load_cluster


def stage_operator() -> type[BaseOperator]:
    """Return the operator of all stages. Raise BadInput, which Airflow shows as the DAG's import error."""
    # Each task's process reads the DAG. To import the Kubernetes client takes most of a second, so it is optional.
    if load_cluster().kubernetes:
        from halos_eval.orchestration.pods import PodStageOperator

        return PodStageOperator
    from halos_eval.orchestration.local import LocalStageOperator

    return LocalStageOperator
