"""The one place that decides what a stage runs as: a pod where the cluster's file has a cluster, else a process."""

from __future__ import annotations

from airflow.sdk import BaseOperator

from halos_eval.config.cluster import load_cluster


def stage_operator() -> type[BaseOperator]:
    """The operator of every stage in every DAG. Raises BadInput, which Airflow shows as the DAG's import error."""
    # Every task's process reads the DAG; Kubernetes' client alone would take it most of a second.
    if load_cluster().kubernetes:
        from halos_eval.orchestration.pods import PodStageOperator

        return PodStageOperator
    from halos_eval.orchestration.local import LocalStageOperator

    return LocalStageOperator
