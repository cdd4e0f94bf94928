"""Turns: of two runs of the same evaluation, the second waits until the first has ended."""

from __future__ import annotations

from datetime import timedelta

import pytest

from halos_eval.orchestration import turns
from halos_eval.orchestration.turns import Prepare, end_turn, take_turn
from halos_eval.storage.claims import claimed
from tests.orchestration.conftest import NOW

ONE = ("team/kto", "demo")


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_STORE", f"file://{tmp_path}/store")


def test_the_second_run_waits_until_the_first_gives_its_turn_back(context):
    context({"night": "running", "manual": "running"}, run_id="night")
    assert take_turn(*ONE)
    assert take_turn(*ONE)  # a retry
    context({"night": "running", "manual": "running"}, run_id="manual")
    assert not take_turn(*ONE)
    end_turn(*ONE)  # it has no turn to give back
    assert not take_turn(*ONE)
    context({"night": "running", "manual": "running"}, run_id="night")
    end_turn(*ONE)
    context({"night": "success", "manual": "running"}, run_id="manual")
    assert take_turn(*ONE)


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_run_that_ended_without_a_verdict_is_not_waited_for(context, state):
    context({"night": "running"}, run_id="night")
    assert take_turn(*ONE)
    context({"night": state, "manual": "running"}, run_id="manual")
    assert take_turn(*ONE)


def test_another_suite_or_checkpoint_is_not_waited_for(context):
    context({"night": "running"}, run_id="night")
    assert take_turn(*ONE)
    context({"night": "running", "manual": "running"}, run_id="manual")
    assert take_turn("team/kto", "quick")
    assert take_turn("team/dpo", "demo")


def test_a_run_of_another_installation_is_waited_for_even_if_it_has_the_same_name(context):
    context({"night": "running"}, run_id="night", run_after=NOW)
    assert take_turn(*ONE)
    context({"other": "running"}, run_id="other")
    assert not take_turn(*ONE)
    context({"night": "running"}, run_id="night", run_after=NOW + timedelta(seconds=1))
    assert not take_turn(*ONE)


def expire(monkeypatch):
    """From now on, turns are taken with leases that have expired."""
    monkeypatch.setattr(turns, "LEASE", timedelta(seconds=-1))


def test_an_open_run_keeps_its_turn_after_the_lease(context, monkeypatch):
    expire(monkeypatch)
    context({"night": "running"}, run_id="night")
    assert take_turn(*ONE)
    context({"night": "queued", "manual": "running"}, run_id="manual")
    assert not take_turn(*ONE)
    context({"night": "failed", "manual": "running"}, run_id="manual")
    assert take_turn(*ONE)


@pytest.mark.parametrize("run_id", ["manual", "night"])
def test_a_run_of_another_installation_keeps_its_turn_while_a_stage_is_at_work(context, monkeypatch, tmp_path, run_id):
    expire(monkeypatch)
    context({}, run_id="night")
    assert take_turn(*ONE)
    stage = f"file://{tmp_path}/store/runs/team__kto/sample/0123456789abcdef/outputs.claims"
    with claimed(stage, "task sample -1 of night"):
        context({run_id: "running"}, run_id=run_id, run_after=NOW + timedelta(hours=25))
        assert not take_turn(*ONE)
    with claimed(stage, "task sample -1 of another"):
        assert take_turn(*ONE)


def test_waiting_holds_no_worker():
    prepare = Prepare(task_id="prepare")
    assert (prepare.reschedule, prepare.poke_interval) == (True, 60)
