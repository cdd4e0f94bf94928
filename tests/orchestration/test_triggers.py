"""The task ``wait`` of a night: which runs it waits for, and when that ends."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from airflow.sdk.exceptions import TaskDeferred

from halos_eval.orchestration import triggers
from halos_eval.orchestration.triggers import AT_ONCE, RunsEnded, RunsEndedTrigger


@pytest.fixture
def looks(monkeypatch):
    """``looks(*states)``: at each look, Airflow has the runs of the next mapping. Return what is left of them."""
    monkeypatch.setattr(triggers, "POLL", 0)

    def looks(*states):
        left = list(states)

        def count(dag_id, run_ids, states):
            assert dag_id == "evaluate_checkpoint"
            now = left.pop(0)
            return sum(now.get(run_id) in states for run_id in run_ids)

        monkeypatch.setattr(triggers.RuntimeTaskInstance, "get_dr_count", count)
        return left

    return looks


def fire(run_ids):
    """Wait as a triggerer does, with the trigger from Airflow's database."""
    name, arguments = RunsEndedTrigger(run_ids).serialize()
    assert name == "halos_eval.orchestration.triggers.RunsEndedTrigger"

    async def first():
        return await anext(RunsEndedTrigger(**arguments).run())

    return asyncio.run(first())


def test_it_waits_for_the_last_run(looks):
    left = looks({"a": "queued", "b": "running"}, {"a": "failed", "b": "running"}, {"a": "failed", "b": "success"})
    fire(["a", "b"])
    assert left == []


def test_it_does_not_wait_for_a_run_that_is_deleted_meanwhile(looks):
    left = looks({"a": "success", "b": "running"}, {"a": "success"})
    fire(["a", "b"])
    assert left == []


@pytest.mark.parametrize("count", [3, AT_ONCE + 1])
def test_it_waits_for_the_first_runs_until_the_message_is_due(monkeypatch, count):
    names = [f"run-{number}" for number in range(count)]
    monkeypatch.setattr(triggers, "runs_open", lambda: names)
    monkeypatch.setattr(triggers, "time_left", lambda: timedelta(minutes=5))
    with pytest.raises(TaskDeferred) as deferred:
        RunsEnded(task_id="wait").execute({})
    assert deferred.value.trigger.run_ids == names[:AT_ONCE]
    assert (deferred.value.method_name, deferred.value.timeout) == ("look_again", timedelta(minutes=5))
    monkeypatch.setattr(triggers, "time_left", lambda: timedelta(0))
    RunsEnded(task_id="wait").execute({})
