"""Stages that share a pod: each keeps its own task instance, which waits until the pack has its record.

It waits deferred, in the default pool, which deferred tasks take no slots of. A cleared instance finds that its pack
has ended, and does the work itself, in a pod of its own with GPUs from their pool (scheduling.py gives it the slots).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowRescheduleException
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent

from halos_eval.errors import HalosEvalError
from halos_eval.orchestration.failures import GPU_CODES, StageFailed
from halos_eval.orchestration.names import PACK
from halos_eval.planning.jobs import Packed
from halos_eval.storage import layout
from halos_eval.storage.records import Failure, readable, readable_record

log = logging.getLogger(__name__)

POLL_SECONDS = 5
"""Time between two looks of a waiting instance."""
RESCHEDULED = timedelta(minutes=1)
"""Time between two looks of a cleared instance whose pack is still at work."""
DAGS_TEST = "dag_test"
"""The user of a run of ``airflow dags test``, which runs one task at a time, and also waits for a deferred one."""
IN_TEST = timedelta(seconds=2)
"""Time between two looks in such a run."""
ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}
METHOD = "pack_ended"
"""The operators' method that Airflow calls after the wait."""


class PackTrigger(BaseTrigger):
    """Fires when a stage has its record or a final failure note, or when its pack has ended."""

    def __init__(self, dag_id: str, run_id: str, packed: dict[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dag_id, self.run_id, self.packed = dag_id, run_id, packed

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for Airflow's database."""
        arguments = {"dag_id": self.dag_id, "run_id": self.run_id, "packed": self.packed}
        return f"{PackTrigger.__module__}.{PackTrigger.__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is a result."""
        packed = Packed.model_validate(self.packed)
        while True:
            # The pack's state first: what it leaves behind is complete once it has ended.
            ended = await asyncio.to_thread(pack_ended, self.dag_id, self.run_id, packed.pack)
            if ended or await asyncio.to_thread(_settled, packed):
                yield TriggerEvent({})  # type: ignore[no-untyped-call]
                return
            await asyncio.sleep(POLL_SECONDS)


def _settled(packed: Packed) -> bool:
    """Return whether the stage has its record or a final note. A triggerer that cannot read the store waits longer."""
    try:
        return finished(packed) or final_note(packed) is not None
    except HalosEvalError as error:
        log.warning("waiting for the end of the pack, because the store cannot be read here: %s", error)
        return False


def pack_ended(dag_id: str, run_id: str, pack: int) -> bool:
    """Return whether the task instance of a pack has ended, however."""
    states = RuntimeTaskInstance.get_task_states(dag_id=dag_id, map_index=pack, task_ids=[PACK], run_ids=[run_id])
    found = states.get(run_id, {}).values()
    return bool(found) and all(state in ENDED for state in found)


def finished(packed: Packed) -> bool:
    """Return whether the stage has the record that it waits for. Raise StoreError."""
    found = readable_record(packed.record)[0]
    if found is None or found.fingerprint != packed.fingerprint:
        return False
    return not packed.force or found.provenance.started >= packed.since


def final_note(packed: Packed) -> Failure | None:
    """Return the failure note of this run that no new pod or process can replace by a record; None without one.

    A fault of a GPU, or memory that is exhausted, can end with some exit codes. Then a new pod or process may follow.
    """
    note = new_note(packed)
    kinds = {one.exit_code for one in _subclasses(HalosEvalError) if not one.retryable} - GPU_CODES
    return note if note and note.exit_code in kinds else None


def new_note(packed: Packed) -> Failure | None:
    """Return the failure note of this run. Raise StoreError."""
    note = readable(layout.failure_beside(packed.record), Failure)[0]
    return note if note and note.at >= packed.since else None


def _subclasses(kind: type[HalosEvalError]) -> set[type[HalosEvalError]]:
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


def waits(operator: BaseOperator, context: Context, packed: Packed) -> bool:
    """Return whether nothing is left to do for a stage that shares a pod; False if its instance does the work itself.

    Defer while the pack is at work. A cleared instance may have slots of GPUs, which a deferred task keeps: it is
    rescheduled instead. Raise StageFailed if the pack ended without a record.
    """
    task = context["ti"]
    cleared = was_cleared(task.max_tries, operator.retries)
    if finished(packed):
        operator.log.info("the record exists (%s)", packed.record)
        return True
    if not pack_ended(task.dag_id, str(context["run_id"]), packed.pack):
        alone = context["dag_run"].triggering_user_name == DAGS_TEST
        if cleared or alone:
            delay = IN_TEST if alone else RESCHEDULED
            raise AirflowRescheduleException(datetime.now(UTC) + delay)  # type: ignore[no-untyped-call]
        operator.log.info("waiting for task %s %d, which runs this stage", PACK, packed.pack)
        trigger = PackTrigger(task.dag_id, str(context["run_id"]), packed.model_dump(mode="json"))
        operator.defer(trigger=trigger, method_name=METHOD)
    if cleared:
        operator.log.info("task %s %d left no record: this stage runs in a pod of its own now", PACK, packed.pack)
        return False
    check_result(operator, packed)
    return True


def check_result(operator: BaseOperator, packed: Packed) -> None:
    """Raise StageFailed if there is no record after the wait, with the reason."""
    if finished(packed):
        operator.log.info("the record exists (%s)", packed.record)
        return
    note = new_note(packed)
    reason = f"{note.error}: {note.message}" if note else f"task {PACK} {packed.pack} ended without a result of it"
    log_of = f"the log of task {PACK} {packed.pack} has more"
    raise StageFailed(f"{reason} ({log_of}). Clear this task to run it in a pod of its own")


def was_cleared(max_tries: int, retries: int | None) -> bool:
    """Return whether somebody cleared a task instance: Airflow then allows more tries than the task has."""
    return max_tries > (retries or 0)
