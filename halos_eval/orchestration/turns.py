"""One run at a time evaluates a suite on a checkpoint. Others wait before they plan, and then find the results.

A turn lasts as long as its run is open. A run that was deleted has it while one of its stages is at work. A run of
another Airflow installation has it for the lease, too, because only that Airflow knows whether the run still exists.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.sdk import BaseSensorOperator, Context, PokeReturnValue, Variable, get_current_context
from airflow.sdk.exceptions import AirflowException

from halos_eval.config.settings import Settings
from halos_eval.orchestration.evaluate import prepare_evaluation
from halos_eval.orchestration.find import run_exists
from halos_eval.orchestration.names import EVALUATION, INSTALLATION
from halos_eval.storage import layout
from halos_eval.storage.claims import Busy, holders_below, process_alive, release, take

log = logging.getLogger(__name__)

LEASE = timedelta(hours=24)
"""How long a run of another Airflow installation is waited for if none of its stages is at work."""
OPEN = {"queued", "running", "restarting"}


class Prepare(BaseSensorOperator):
    """Sensor that checks the params, waits for this run's turn, and returns the job that fetches unpinned data.

    The XCom ``checkpoint`` has the checkpoint's name in the store, which an alias of MLflow gives to others later.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Between two looks it holds no worker.
        super().__init__(mode="reschedule", poke_interval=60, **kwargs)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once. Raise AirflowFailException for wrong params."""
        params = dict(context["params"])
        name, job = prepare_evaluation(params)
        context["ti"].xcom_push("checkpoint", name)
        return PokeReturnValue(is_done=take_turn(name, params["suite"]), xcom_value=job)


def take_turn(checkpoint: str, suite: str) -> bool:
    """Return whether this run may evaluate ``suite`` on ``checkpoint`` now. If not, log which run does."""
    root = Settings().store
    turn = layout.turn_url(root, suite, checkpoint)
    try:
        take(turn, _this_run(), partial(_at_work, root, checkpoint), LEASE)
    except Busy as error:
        log.info("waiting: %s. If the Airflow of that run no longer exists, remove %s", error, turn)
        return False
    return True


def end_turn(checkpoint: str, suite: str) -> None:
    """Let the next run begin."""
    release(layout.turn_url(Settings().store, suite, checkpoint), _this_run())


def task_owner(context: Context, abandoned: int = 0) -> str:
    """Return the owner that stands for a task instance, whatever its try.

    With ``abandoned`` pods that may still be at work, it is another owner, which does not share their claim.
    """
    task = context["ti"]
    more = f" after {abandoned} abandoned" if abandoned else ""
    return f"task {task.task_id} {task.map_index}{more} of {context['run_id']}"


def _this_run() -> str:
    """Return the owner that stands for this run. Two installations can have runs of the same name."""
    run = get_current_context()["dag_run"]
    return f"run {run.run_id} of {run.run_after:%Y-%m-%d %H:%M:%S} in {_installation()}"


def _installation() -> str:
    """Return the ID of this Airflow installation. Its database keeps it in a Variable."""
    if (known := Variable.get(INSTALLATION, default=None)) is None:
        # Airflow reads a Variable as missing also if its API does not answer. The list of names fails then.
        if INSTALLATION in Variable.keys(prefix=INSTALLATION):
            raise AirflowException(f"Airflow's Variable {INSTALLATION} cannot be read. Run it again")
        # Runs that begin at the same moment choose the same ID: that of the DAG's version, which no other database has.
        known = str(get_current_context()["ti"].dag_version_id)
        Variable.set(INSTALLATION, known, description="the owner of turns in the store of halos-eval; do not change it")
    return str(known)


def _at_work(root: str, checkpoint: str, owner: str) -> bool | None:
    """Return whether the run ``owner`` is at work on a checkpoint; None if its lease decides."""
    run, _, installation = owner.removeprefix("run ").rpartition(" in ")
    run_id, ours = run.rpartition(" of ")[0], installation == _installation()
    context = get_current_context()
    # A run with the name of this one, but another owner, was deleted.
    if ours and run_id != context["dag_run"].run_id and run_exists(run_id):
        return context["ti"].get_dagrun_state(EVALUATION, run_id) in OPEN
    stages = holders_below(layout.runs_url(root, checkpoint), process_alive)
    if any(stage.endswith(f" of {run_id}") for stage in stages):
        return True
    return False if ours else None
