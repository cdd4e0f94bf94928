"""Turns: of two runs of the same evaluation, the second waits until the first has ended."""

from __future__ import annotations

from datetime import timedelta

import pytest

from halos_eval.orchestration.turns import Prepare, end_turn, take_turn
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


def test_waiting_holds_no_worker():
    prepare = Prepare(task_id="prepare")
    assert (prepare.reschedule, prepare.poke_interval) == (True, 60)
