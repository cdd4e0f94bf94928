"""The tasks ``wait`` and ``report``: the states of the runs that ``find`` selected, and the message about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError

from halos_eval.config.policy import load_policy
from halos_eval.config.settings import Settings
from halos_eval.orchestration.find import run_exists
from halos_eval.orchestration.names import EVALUATION, NIGHT
from halos_eval.orchestration.notify import beat, send
from halos_eval.planning.selection import Selection
from halos_eval.reports.message import PENDING, compose


def runs_open() -> list[str]:
    """Return the names of the selected runs that have not ended."""
    selection = _selection()
    states = _states(selection) if selection else {}
    return [run_id for run_id, state in states.items() if state in PENDING]


def time_left() -> timedelta:
    """Return how much longer the message may wait for open runs."""
    began = get_current_context()["dag_run"].start_date or datetime.now(UTC)
    return began + timedelta(hours=load_policy().message_after_hours) - datetime.now(UTC)


def send_report() -> None:
    """Send the message about the selected runs. Raise AirflowFailException if one of them failed.

    Dry runs send no message. Neither do backfilled nights without work, because a backfill has many of them.
    """
    context = get_current_context()
    selection = _selection()
    if selection == Selection() and (context["params"].get("dry_run") or context["dag_run"].run_type == "backfill"):
        return
    day = context.get("data_interval_end") or context["dag_run"].run_after
    title = f"{context['dag_run'].dag_id} {day:%Y-%m-%d}"
    message = compose(title, selection, _states(selection) if selection else {}, Settings().store)
    send(message)
    if (context["dag_run"].dag_id, context["dag_run"].run_type) == (NIGHT, "scheduled"):
        beat(Settings().heartbeat_url)
    if message.failed:
        raise AirflowFailException(message.title)


def _selection() -> Selection | None:
    """Return the selection of the task ``find``, or None if that task failed."""
    found = get_current_context()["ti"].xcom_pull(task_ids="find", key="selection")
    return None if found is None else Selection.model_validate(found)


def _states(selection: Selection) -> dict[str, str]:
    """Return Airflow's states of the selected runs, by run_id."""
    return {one.run_id: _state(one.run_id) for one in selection.evaluations}


def _state(run_id: str) -> str:
    try:
        return get_current_context()["ti"].get_dagrun_state(EVALUATION, run_id)
    except AirflowRuntimeError:
        if run_exists(run_id):
            raise
        return "unknown"  # the run was deleted, or could not be triggered
