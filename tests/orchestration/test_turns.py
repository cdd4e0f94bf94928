"""Turns: of two runs of the same evaluation, the second waits until the first has ended."""

from __future__ import annotations

import shutil
from datetime import timedelta
from uuid import uuid4

import pytest
from airflow.sdk.exceptions import AirflowException

from halos_eval.orchestration import turns
from halos_eval.orchestration.turns import Prepare, end_turn, take_turn
from halos_eval.storage.claims import claimed
from tests.orchestration.conftest import NOW

ONE = ("team/kto", "demo")


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_STORE", f"file://{tmp_path}/store")


@pytest.fixture(autouse=True)
def airflow(monkeypatch):
    """``airflow("lab")`` is the installation of all later calls. Airflow also reads Variables from there."""

    def airflow(name):
        monkeypatch.setenv("AIRFLOW_VAR_HALOS_EVAL_INSTALLATION", name)

    airflow("lab")
    return airflow


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


def test_a_run_of_another_installation_is_waited_for_even_if_it_has_the_same_name(context, airflow, caplog):
    context({"night": "running"}, run_id="night", run_after=NOW)
    assert take_turn(*ONE)
    airflow("cloud")
    context({"other": "running"}, run_id="other")
    assert not take_turn(*ONE)
    assert "remove file://" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("/store/claims/demo/team__kto")
    context({"night": "failed", "other": "running"}, run_id="other")  # its own one of that name says nothing
    assert not take_turn(*ONE)
    context({"night": "running"}, run_id="night", run_after=NOW)
    assert not take_turn(*ONE)


@pytest.mark.parametrize("next_name", ["night", "manual"])
def test_a_run_that_was_deleted_is_not_waited_for(context, next_name):
    context({"night": "failed"}, run_id="night")
    assert take_turn(*ONE)
    context({next_name: "running"}, run_id=next_name, run_after=NOW + timedelta(minutes=9))
    assert take_turn(*ONE)


def test_a_run_that_was_deleted_keeps_its_turn_while_a_stage_is_at_work(context, tmp_path):
    context({"night": "running"}, run_id="night")
    assert take_turn(*ONE)
    context({"manual": "running"}, run_id="manual")
    with claimed(f"file://{tmp_path}/store/runs/team__kto/sample/0123456789abcdef/claims", "task sample -1 of night"):
        assert not take_turn(*ONE)
    assert take_turn(*ONE)


def test_runs_of_a_deleted_database_are_waited_for_until_their_turn_is_removed(context, airflow, tmp_path):
    """They may have pods that wait for a node. A name that the environment gives is the same in the next database."""
    context({"night": "running"}, run_id="night")
    assert take_turn(*ONE)
    airflow("the next database")
    context({"manual": "running"}, run_id="manual")
    assert not take_turn(*ONE)
    airflow("lab")
    assert take_turn(*ONE)
    airflow("the next database")
    assert not take_turn(*ONE)
    shutil.rmtree(tmp_path / "store" / "claims" / "demo" / "team__kto")
    assert take_turn(*ONE)


class Variables(dict):
    """Airflow's Variables. ``unreadable``: its API does not answer a request for one."""

    unreadable = False

    def get(self, key, default):
        return default if self.unreadable else super().get(key, default)

    def set(self, key, value, description):
        self[key] = value

    def keys(self, prefix):
        return [key for key in self if key.startswith(prefix)]


def test_an_installation_has_one_id_whatever_version_its_dag_has(context, monkeypatch):
    variables = Variables()
    monkeypatch.setattr(turns, "Variable", variables)
    context({"night": "running"}, run_id="night").dag_version_id = uuid4()
    assert take_turn(*ONE)
    context({"manual": "running"}, run_id="manual").dag_version_id = uuid4()
    assert take_turn(*ONE)  # the first one was deleted
    variables.unreadable = True
    with pytest.raises(AirflowException, match="halos_eval_installation cannot be read"):
        take_turn(*ONE)


def test_installations_have_different_ids(context, monkeypatch):
    context({"night": "running"}, run_id="night").dag_version_id = uuid4()
    monkeypatch.setattr(turns, "Variable", Variables())
    assert take_turn(*ONE)
    context({"manual": "running"}, run_id="manual").dag_version_id = uuid4()
    monkeypatch.setattr(turns, "Variable", Variables())
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
def test_a_run_of_another_installation_keeps_its_turn_while_a_stage_is_at_work(
    context, airflow, monkeypatch, tmp_path, run_id
):
    expire(monkeypatch)
    context({}, run_id="night")
    assert take_turn(*ONE)
    airflow("cloud")
    stage = f"file://{tmp_path}/store/runs/team__kto/sample/0123456789abcdef/outputs.claims"
    with claimed(stage, "task sample -1 of night"):
        context({run_id: "running"}, run_id=run_id, run_after=NOW + timedelta(hours=25))
        assert not take_turn(*ONE)
    with claimed(stage, "task sample -1 of another"):
        assert take_turn(*ONE)


def test_waiting_holds_no_worker():
    prepare = Prepare(task_id="prepare")
    assert (prepare.reschedule, prepare.poke_interval) == (True, 60)
