"""One run at a time evaluates a suite on a checkpoint. Others wait before they plan, and then find the results."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, Context, PokeReturnValue, get_current_context

from halos_eval.config.settings import Settings
from halos_eval.orchestration.evaluate import prepare_evaluation, requested_name
from halos_eval.orchestration.find import run_exists
from halos_eval.orchestration.names import EVALUATION
from halos_eval.storage import layout
from halos_eval.storage.claims import Busy, release, take

log = logging.getLogger(__name__)

LEASE = timedelta(hours=24)
"""How long a run of another Airflow installation is waited for. The end of a run of this one is known at once."""
OPEN = {"queued", "running", "restarting"}


class Prepare(BaseSensorOperator):
    """Sensor that checks the params, waits for this run's turn, and returns the job that fetches unpinned data."""

    def __init__(self, **kwargs: Any) -> None:
        # Between two looks it holds no worker.
        super().__init__(mode="reschedule", poke_interval=60, **kwargs)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once. Raise AirflowFailException for wrong params."""
        params = dict(context["params"])
        job = prepare_evaluation(params)
        return PokeReturnValue(is_done=take_turn(requested_name(params), params["suite"]), xcom_value=job)


def take_turn(checkpoint: str, suite: str) -> bool:
    """Return whether this run may evaluate ``suite`` on ``checkpoint`` now. If not, log which run does."""
    try:
        take(layout.turn_url(Settings().store, suite, checkpoint), _this_run(), _is_open, LEASE)
    except Busy as error:
        log.info("waiting: %s", error)
        return False
    return True


def end_turn(checkpoint: str, suite: str) -> None:
    """Let the next run begin."""
    release(layout.turn_url(Settings().store, suite, checkpoint), _this_run())


def task_owner(context: Context) -> str:
    """Return the owner that stands for a task instance, whatever its try."""
    task = context["ti"]
    return f"task {task.task_id} {task.map_index} of {context['run_id']}"


def _this_run() -> str:
    """Return the owner that stands for this run. Two installations can have runs of the same name."""
    run = get_current_context()["dag_run"]
    return f"run {run.run_id} of {run.run_after:%Y-%m-%d %H:%M:%S}"


def _is_open(owner: str) -> bool:
    """Return whether a run may still be at work; True for a run that this installation does not know."""
    run_id = owner.removeprefix("run ").rpartition(" of ")[0]
    if not run_exists(run_id):
        return True
    return get_current_context()["ti"].get_dagrun_state(EVALUATION, run_id) in OPEN
