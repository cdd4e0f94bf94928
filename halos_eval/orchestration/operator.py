"""The choice of operator: stages run as pods if the cluster file has the key kubernetes, otherwise as processes."""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import BaseOperator

from halos_eval.config.cluster import load_cluster
from halos_eval.config.settings import Settings
from halos_eval.errors import BadInput


def stage_operator() -> type[BaseOperator]:
    """Return the operator of all stages. Raise BadInput, which Airflow shows as the DAG's import error.

    Only what is known without a network is checked, because each task's process reads the DAG.
    """
    # To import the Kubernetes client takes most of a second, so it is optional.
    settings = Settings()
    if load_cluster().kubernetes:
        if "store" not in settings.model_fields_set:
            raise BadInput(
                "HALOS_EVAL_STORE is not set, but the cluster file has the key kubernetes; expected a store that pods "
                "reach, such as s3://BUCKET/FOLDER. Set it for all components of Airflow"
            )
        try:
            from halos_eval.orchestration.pods import PodStageOperator
        except ImportError as error:
            raise BadInput(
                f"this Airflow cannot start pods ({error}), but the cluster file has the key kubernetes; expected "
                "apache-airflow-providers-cncf-kubernetes. Install halos-eval with its extra airflow in Airflow's image"
            ) from error
        return PodStageOperator
    if not Path(settings.environments).is_dir():
        raise BadInput(
            f"this Airflow runs stages as processes, but {settings.environments} is not a folder; expected the "
            "virtual environments worker and judge. On a cluster set HALOS_EVAL_CLUSTER to the cluster file, for all "
            "components of Airflow. On one machine set HALOS_EVAL_ENVIRONMENTS"
        )
    from halos_eval.orchestration.local import LocalStageOperator

    return LocalStageOperator
