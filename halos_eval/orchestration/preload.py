"""What Airflow's tasks import, imported once in the scheduler.

LocalExecutor forks a process for each task from one that the scheduler forked when it started. Without this, each of
them imports the operators, the Kubernetes client and this package again, which takes most of its processor time. The
same holds for the processes in which the DAG processor reads a DAG.

Airflow calls the listener when it makes the component's job, before it starts the executor. It finds the plugin by the
entry point ``airflow.plugins``.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)

COMPONENTS = {"scheduler", "dag-processor"}
"""Commands of the components that fork a process for each task, or for each reading of a DAG."""
MODULES = (
    "airflow.dag_processing.dagbag",
    "airflow.providers.standard.operators.empty",
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.execution_time.supervisor",
    "halos_eval.orchestration.defaults",
    "halos_eval.orchestration.find",
    "halos_eval.orchestration.params",
    "halos_eval.orchestration.report",
    "halos_eval.orchestration.triggers",
    "halos_eval.orchestration.turns",
)


@hookimpl
def on_starting(component: Any) -> None:
    """Import what the tasks of a component will need. An import that fails is left to the task, which reports it."""
    # The job has no type yet, and a task's process, which calls this as well, has no job.
    if type(component).__name__ == "Job" and COMPONENTS.intersection(sys.argv[1:2]):
        for name in MODULES:
            _import(name)
        _import_operator()


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 (the scheduler must start)
        log.warning("%s was not imported in advance: %s", name, error)


def _import_operator() -> None:
    """Import what the settings select: the operator of the stages, and the client of the store."""
    from halos_eval.config.settings import Settings
    from halos_eval.orchestration.operator import stage_operator

    try:
        stage_operator()
        if Settings().store.startswith("s3://"):
            _import("s3fs")
    except Exception as error:  # noqa: BLE001 (the scheduler must start; the DAG reports the error)
        log.warning("the operator of the stages was not imported in advance: %s", error)


class PreloadPlugin(AirflowPlugin):
    """The listener."""

    name = "halos_eval_preload"
    listeners = [sys.modules[__name__]]  # noqa: RUF012 (Airflow's interface)
