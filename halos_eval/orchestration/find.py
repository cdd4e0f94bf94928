"""The tasks that decide what is evaluated, wait for it and tell of it. They read registries, plans and records."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError
from pydantic import ValidationError

from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.checkpoints.registry import Registry
from halos_eval.config.cluster import Priority
from halos_eval.config.policy import load_policy
from halos_eval.config.settings import Settings
from halos_eval.errors import describe
from halos_eval.orchestration.names import EVALUATION
from halos_eval.orchestration.notify import send
from halos_eval.planning.selection import Backfill, Selection, for_backfill, for_night, for_registration, look_back
from halos_eval.reports.message import PENDING, compose

log = logging.getLogger(__name__)


def find_for_night() -> list[dict[str, Any]]:
    """What this night starts: of its interval, and, unless it is a backfill's, of the days before it.

    A run without an interval (triggered without a logical date) takes the days up to now.
    """
    context = get_current_context()
    policy, settings = load_policy(), Settings()
    end = context.get("data_interval_end") or datetime.now(UTC)
    start = context.get("data_interval_start") or end
    backfilled = context["dag_run"].run_type == "backfill"
    begin = start if backfilled else look_back(policy, start)
    selection = for_night(_registry(settings), policy, settings.store, _is_there, begin, end)
    return _hand_out(selection, "backfill" if backfilled else "nightly", wait=backfilled)


def find_for_backfill() -> list[dict[str, Any]]:
    """What the params ask for; nothing is started by a dry run."""
    context = get_current_context()
    params, settings = dict(context["params"]), Settings()
    try:
        asked = Backfill.model_validate({key: params[key] for key in Backfill.model_fields if params[key] is not None})
    except ValidationError as error:
        raise AirflowFailException(f"BadInput: {describe(error)}") from error
    selection = for_backfill(_registry(settings), asked, settings.store, _is_there, context["dag_run"].run_id)
    if params["dry_run"]:
        _tell(selection)
        log.info(
            "dry run: nothing is started. Trigger it with dry_run false to start these %d", len(selection.evaluations)
        )
        selection = Selection()
    return _hand_out(selection, params["priority"], wait=True, force=not asked.only_missing)


def find_for_registration() -> list[dict[str, Any]]:
    """What the policy wants of the one checkpoint that the event names."""
    context = get_current_context()
    settings = Settings()
    name = context["dag_run"].partition_key
    if not name:
        raise AirflowFailException("BadInput: the event names no checkpoint: give its name as partition_key")
    selection = for_registration(_registry(settings), load_policy(), settings.store, _is_there, name)
    return _hand_out(selection, "nightly", wait=False)


def runs_open() -> list[str]:
    """The runs that were started and have not ended."""
    selection = _selection()
    states = _states(selection) if selection else {}
    return [run_id for run_id, state in states.items() if state in PENDING]


def time_left() -> timedelta:
    """How long the message may wait for them."""
    began = get_current_context()["dag_run"].start_date or datetime.now(UTC)
    return began + timedelta(hours=load_policy().message_after_hours) - datetime.now(UTC)


def send_report() -> None:
    """Tell what has become of what was started. Fails if anything of it has: the run is as red as what it started.

    Nobody is told of a dry run, nor that an old night, of which a backfill has many, had nothing to do.
    """
    context = get_current_context()
    selection = _selection()
    if selection == Selection() and (context["params"].get("dry_run") or context["dag_run"].run_type == "backfill"):
        return
    day = context.get("data_interval_end") or context["dag_run"].run_after
    title = f"{context['dag_run'].dag_id} {day:%Y-%m-%d}"
    message = compose(title, selection, _states(selection) if selection else {}, Settings().store)
    send(message)
    if message.failed:
        raise AirflowFailException(message.title)


def _registry(settings: Settings) -> Registry:
    return open_registry(settings.checkpoints, settings.steps)


def _hand_out(selection: Selection, priority: Priority, wait: bool, force: bool = False) -> list[dict[str, Any]]:
    """Keep the selection for the message, tell it, and give what TriggerDagRunOperator is to be called with."""
    get_current_context()["ti"].xcom_push("selection", selection.model_dump(mode="json"))
    _tell(selection)
    return [
        {
            "trigger_run_id": one.run_id,
            "conf": {"checkpoint": one.checkpoint, "suite": one.suite, "priority": priority, "force": force},
            "wait_for_completion": wait,
        }
        for one in selection.evaluations
    ]


def _tell(selection: Selection) -> None:
    for one in selection.evaluations:
        log.info("%s: %s, as run %s", one.checkpoint, one.suite, one.run_id)
    for name in selection.complete:
        log.info("%s is complete", name)
    for name, why in selection.left_out.items():
        log.warning("%s is left out: %s", name, why)
    if not selection.evaluations:
        log.info("nothing to do")


def _selection() -> Selection | None:
    """What ``find`` has found; None if it has failed."""
    found = get_current_context()["ti"].xcom_pull(task_ids="find", key="selection")
    return None if found is None else Selection.model_validate(found)


def _states(selection: Selection) -> dict[str, str]:
    """Airflow's states of the runs, by run_id."""
    return {one.run_id: _state(one.run_id) for one in selection.evaluations}


def _is_there(run_id: str) -> bool:
    return bool(get_current_context()["ti"].get_dr_count(EVALUATION, run_ids=[run_id]))


def _state(run_id: str) -> str:
    try:
        return get_current_context()["ti"].get_dagrun_state(EVALUATION, run_id)
    except AirflowRuntimeError:
        if _is_there(run_id):
            raise
        return "unknown"  # it could not be triggered, or was deleted
