"""The choice of operator: stages run as pods if the cluster file has the key kubernetes, otherwise as processes."""

from __future__ import annotations

from airflow.sdk import BaseOperator

from halos_eval.config.cluster import load_cluster
from halos_eval.errors import BadInput


def stage_operator() -> type[BaseOperator]:
    """Return the operator of all stages. Raise BadInput, which Airflow shows as the DAG's import error."""
    # Each task's process reads the DAG. To import the Kubernetes client takes most of a second, so it is optional.
    if load_cluster().kubernetes:
        try:
            from halos_eval.orchestration.pods import PodStageOperator
        except ImportError as error:
            raise BadInput(
                f"this Airflow cannot start pods ({error}), but the cluster file has the key kubernetes; expected "
                "apache-airflow-providers-cncf-kubernetes. Install halos-eval with its extra airflow in Airflow's image"
            ) from error
        return PodStageOperator
    from halos_eval.orchestration.local import LocalStageOperator

    return LocalStageOperator
