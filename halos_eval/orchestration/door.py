"""The one place that decides what a stage runs as: a pod where the cluster's file has a cluster, else a process."""

from __future__ import annotations

from airflow.sdk import BaseOperator

from halos_eval.cluster import load_cluster
from halos_eval.orchestration.local import LocalStageOperator
from halos_eval.orchestration.pods import PodStageOperator


def stage_operator() -> type[BaseOperator]:
    """The operator of every stage in every DAG. Raises BadInput, which Airflow shows as the DAG's import error."""
    return PodStageOperator if load_cluster().kubernetes else LocalStageOperator
