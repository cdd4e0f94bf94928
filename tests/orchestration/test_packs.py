"""Task instances of stages that share a pod: they wait for the pack, and do the work themselves once cleared."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferred

from halos_eval.orchestration import packs
from halos_eval.orchestration.failures import StageFailed
from halos_eval.orchestration.packs import PackTrigger, check_result, final_note, finished, waits
from halos_eval.planning.jobs import Packed
from halos_eval.storage.records import Failure, write_model
from tests.doubles import make_record

NOW = datetime.now(UTC)


class Operator:
    """As much of an operator as the wait uses."""

    retries = 4
    log = logging.getLogger("operator")

    def defer(self, trigger, method_name):
        raise TaskDeferred(trigger=trigger, method_name=method_name)


@pytest.fixture
def packed(tmp_path):
    return Packed(pack=2, record=str(tmp_path / "run" / "record.json"), fingerprint="f", since=NOW)


@pytest.fixture
def ended(monkeypatch):
    """``ended(True)`` says that the pack has ended."""

    def ended(value):
        monkeypatch.setattr(packs, "pack_ended", lambda *_: value)

    ended(False)
    return ended


def context(max_tries=4, user="admin"):
    task = SimpleNamespace(dag_id="evaluate_checkpoint", max_tries=max_tries)
    return {"ti": task, "run_id": "one", "dag_run": SimpleNamespace(triggering_user_name=user)}


def note(packed, kind="BadInput", code=2, at=NOW):
    failure = Failure(error=kind, message="why", exit_code=code, at=at)
    write_model(packed.record.replace("record.json", "failure.json"), failure)


def test_it_defers_while_the_pack_is_at_work(packed, ended):
    with pytest.raises(TaskDeferred) as deferred:
        waits(Operator(), context(), packed)
    name, arguments = deferred.value.trigger.serialize()
    assert name == "halos_eval.orchestration.packs.PackTrigger"
    assert PackTrigger(**arguments).serialize() == (name, arguments)
    assert deferred.value.method_name == "pack_ended"


def test_a_cleared_instance_keeps_no_gpus_while_the_pack_is_at_work(packed, ended):
    with pytest.raises(AirflowRescheduleException):
        waits(Operator(), context(max_tries=5), packed)


def test_dags_test_runs_one_task_at_a_time_so_nothing_is_deferred(packed, ended):
    with pytest.raises(AirflowRescheduleException):
        waits(Operator(), context(user="dag_test"), packed)


def test_a_record_ends_the_wait(packed, ended):
    write_model(packed.record, make_record(task="one"))
    assert waits(Operator(), context(), packed)
    assert waits(Operator(), context(max_tries=5), packed)


def test_a_cleared_instance_does_the_work_itself_after_the_pack(packed, ended):
    ended(True)
    assert not waits(Operator(), context(max_tries=5), packed)


def test_it_fails_with_the_reason_if_the_pack_left_no_record(packed, ended):
    ended(True)
    with pytest.raises(StageFailed, match="task pack 2 ended without a result of it"):
        waits(Operator(), context(), packed)
    note(packed)
    with pytest.raises(StageFailed, match=r"^BadInput: why .* Clear this task"):
        check_result(Operator(), packed)


def test_a_record_of_an_earlier_run_does_not_end_a_forced_one(packed):
    record = make_record(task="one")
    write_model(packed.record, record)
    assert finished(packed)
    started = record.provenance.started
    assert finished(packed.model_copy(update={"force": True, "since": started}))
    assert not finished(packed.model_copy(update={"force": True, "since": started + timedelta(seconds=1)}))
    assert not finished(packed.model_copy(update={"fingerprint": "other"}))


@pytest.mark.parametrize(
    ("kind", "code", "final"),
    [("BadInput", 2, True), ("DataUnavailable", 3, True), ("Incomplete", 5, False), ("EvaluationFailed", 7, False)],
)
def test_a_note_is_final_unless_the_pack_may_try_again(packed, kind, code, final):
    note(packed, kind, code)
    assert bool(final_note(packed)) == final
    note(packed, kind, code, NOW - timedelta(hours=1))
    assert final_note(packed) is None


def test_the_trigger_fires_when_there_is_a_result(packed, ended, monkeypatch):
    monkeypatch.setattr(packs, "POLL_SECONDS", 0.01)

    async def fire():
        return [event async for event in PackTrigger("dag", "one", packed.model_dump(mode="json")).run()]

    note(packed)
    assert len(asyncio.run(fire())) == 1
    ended(True)
    assert len(asyncio.run(fire())) == 1
