"""The task ``find`` of the DAGs that start evaluations. It reads registries, plans and records."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import get_current_context
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException
from pydantic import ValidationError

from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.checkpoints.registry import Registry
from halos_eval.config.cluster import Priority, load_cluster
from halos_eval.config.policy import load_policy
from halos_eval.config.settings import Settings
from halos_eval.errors import describe
from halos_eval.orchestration.names import EVALUATION
from halos_eval.planning.selection import Backfill, Selection, for_backfill, for_night, for_registration, look_back

log = logging.getLogger(__name__)

EVENT_EXPIRES = timedelta(hours=1)
"""An event that waited longer, because its DAG was paused, starts no evaluation."""


def find_for_night() -> list[dict[str, Any]]:
    """Select for a night: the checkpoints of its interval and, unless it is backfilled, late ones.

    A run without an interval (triggered without a logical date) looks back from now.
    """
    context = get_current_context()
    policy, settings = load_policy(), Settings()
    end = context.get("data_interval_end") or datetime.now(UTC)
    start = context.get("data_interval_start") or end
    backfilled = context["dag_run"].run_type == "backfill"
    begin = start if backfilled else look_back(policy, start)
    selection = for_night(_registry(settings), policy, settings.store, load_cluster(), run_exists, begin, end)
    selection = _check_length(selection) if backfilled else _shortened(selection)
    return _publish(selection, "backfill" if backfilled else "nightly", wait=backfilled)


def find_for_backfill() -> list[dict[str, Any]]:
    """Select what the params describe. A dry run logs it and returns nothing."""
    context = get_current_context()
    params, settings = dict(context["params"]), Settings()
    try:
        asked = Backfill.model_validate({key: params[key] for key in Backfill.model_fields if params[key] is not None})
    except ValidationError as error:
        raise AirflowFailException(f"BadInput: {describe(error)}") from error
    selection = for_backfill(
        _registry(settings), asked, settings.store, load_cluster(), run_exists, context["dag_run"].run_id
    )
    _check_length(selection)
    if params["dry_run"]:
        _log(selection)
        count = len(selection.evaluations)
        log.info("dry run: nothing is started. Set dry_run to false to start these runs (%d)", count)
        selection = Selection()
    return _publish(selection, params["priority"], wait=True, force=not asked.only_missing)


def find_for_registration() -> list[dict[str, Any]]:
    """Select the suites that the policy file gives to the checkpoint that the event names.

    The limits of a night do not apply. So the events that came while the DAG was paused must not start together when it
    is unpaused: old ones are left to the night. Airflow 3.3.2 creates their runs while the DAG is paused, and later
    versions when it is unpaused (https://github.com/apache/airflow/pull/73151), so only the events' times count.
    """
    context = get_current_context()
    settings = Settings()
    name = context["dag_run"].partition_key
    if not name:
        raise AirflowFailException("BadInput: event has no partition_key; expected the name of a checkpoint")
    times = [event.timestamp for event in context["dag_run"].consumed_asset_events]
    if times and (age := datetime.now(UTC) - max(times)) > EVENT_EXPIRES:
        hours, most = (span / timedelta(hours=1) for span in (age, EVENT_EXPIRES))
        why = (
            f"the event is {hours:.1f} hours old; expected at most {most:.0f}. The next night takes the checkpoint, if "
            "it was registered within the look-back. To start it now, create the event again"
        )
        return _publish(Selection(left_out={name: why}), "nightly", wait=False)
    selection = for_registration(_registry(settings), load_policy(), settings.store, load_cluster(), run_exists, name)
    return _publish(selection, "nightly", wait=False)


def run_exists(run_id: str) -> bool:
    """Return whether Airflow has a run of ``evaluate_checkpoint`` with this name."""
    return bool(get_current_context()["ti"].get_dr_count(EVALUATION, run_ids=[run_id]))


def _registry(settings: Settings) -> Registry:
    return open_registry(settings.checkpoints, settings.steps)


def _longest() -> int:
    """Return how many runs ``evaluate`` can start. Airflow rejects a longer list, and says only how long it is."""
    return int(conf.getint("core", "max_map_length", fallback=1024))


def _check_length(selection: Selection) -> Selection:
    """Return ``selection``. Raise AirflowFailException if Airflow would reject it."""
    count = len(selection.evaluations)
    if count > _longest():
        raise AirflowFailException(
            f"BadInput: the selection is too large ({count} runs); expected at most {_longest()}. Set "
            f"AIRFLOW__CORE__MAX_MAP_LENGTH={count} for all processes of Airflow, or select fewer checkpoints by "
            "names, tags or dates"
        )
    return selection


def _shortened(selection: Selection) -> Selection:
    """Return the first evaluations of a night, as many as Airflow accepts. The next night finds the rest."""
    over = selection.evaluations[_longest() :]
    why = f"more than {_longest()} runs in one night (AIRFLOW__CORE__MAX_MAP_LENGTH). The next night takes the rest"
    left_out = selection.left_out | {f"{one.checkpoint}: {one.suite}": why for one in over}
    return selection.model_copy(update={"evaluations": selection.evaluations[: _longest()], "left_out": left_out})


def _publish(selection: Selection, priority: Priority, wait: bool, force: bool = False) -> list[dict[str, Any]]:
    """Log the selection, keep it for the message, and return the arguments of TriggerDagRunOperator."""
    get_current_context()["ti"].xcom_push("selection", selection.model_dump(mode="json"))
    _log(selection)
    return [
        {
            "trigger_run_id": one.run_id,
            "conf": {"checkpoint": one.checkpoint, "suite": one.suite, "priority": priority, "force": force}
            | ({"tasks": list(one.parts)} if one.parts else {}),
            "wait_for_completion": wait,
        }
        for one in selection.evaluations
    ]


def _log(selection: Selection) -> None:
    for one in selection.evaluations:
        log.info("%s: %s, as run %s", one.checkpoint, one.suite, one.run_id)
    for name in selection.complete:
        log.info("%s is complete", name)
    for name, why in selection.left_out.items():
        log.warning("%s is left out: %s", name, why)
    if not selection.evaluations:
        log.info("nothing to do")
