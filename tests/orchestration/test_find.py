"""The task ``find``: which interval, which runs, and that a dry run starts nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from airflow.sdk.api.datamodels._generated import AssetEventDagRunReference, DagRun
from airflow.sdk.exceptions import AirflowFailException

from halos_eval.config.settings import Settings
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.orchestration import find
from halos_eval.planning.interrupted import write_note
from halos_eval.planning.selection import Selection
from halos_eval.storage.layout import safe_name

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
PARAMS = {
    "suite": "demo", "match": ["*"], "tags": {}, "registered_from": None, "registered_until": None,
    "only_missing": True, "at_most": 4, "priority": "backfill", "dry_run": False,
}  # fmt: skip


def names(jobs):
    return [job["conf"]["checkpoint"] for job in jobs]


def test_a_night_looks_back(register, context):
    for name, days in {"old": 9, "late": 3.5, "new": 1.5, "newest": 0.5}.items():
        register(name, days)
    exchange = context(run_type="scheduled", data_interval_start=NOW - 2 * DAY, data_interval_end=NOW - DAY)
    jobs = find.find_for_night()
    assert names(jobs) == ["late", "new"]
    assert {job["wait_for_completion"] for job in jobs} == {False}
    assert {job["conf"]["priority"] for job in jobs} == {"nightly"}
    kept = Selection.model_validate(exchange.pushed["selection"])
    assert [one.run_id for one in kept.evaluations] == [job["trigger_run_id"] for job in jobs]


def test_a_run_that_exists_is_not_started_again(register, context):
    register("new", 0.01)
    context()
    (job,) = find.find_for_night()
    exchange = context(states={job["trigger_run_id"]: "failed"})
    assert find.find_for_night() == []
    assert "started before" in exchange.pushed["selection"]["left_out"]["new: demo"]


def test_a_night_without_an_interval_looks_up_to_now(register, context):
    register("new", 0.01)
    context()
    assert names(find.find_for_night()) == ["new"]


def test_a_backfilled_night_takes_its_own_interval_and_waits(register, context):
    register("late", 3.5)
    register("new", 1.5)
    context(run_type="backfill", data_interval_start=NOW - 2 * DAY, data_interval_end=NOW - DAY)
    (job,) = find.find_for_night()
    assert job["conf"] == {"checkpoint": "new", "suite": "demo", "priority": "backfill", "force": False}
    assert job["wait_for_completion"]


def test_an_unavailable_registry_is_retried(register, context):
    context()
    with pytest.raises(DataUnavailable):
        find.find_for_night()


def test_a_backfill(register, context):
    register("kto", 30)
    register("dpo", 30)
    context(params=PARAMS | {"match": ["k*"], "priority": "manual", "only_missing": False})
    (job,) = find.find_for_backfill()
    assert job["conf"] == {"checkpoint": "kto", "suite": "demo", "priority": "manual", "force": True}
    assert job["wait_for_completion"]


def test_a_dry_run_starts_nothing_and_logs_all(register, context, caplog):
    register("kto", 30)
    exchange = context(params=PARAMS | {"dry_run": True})
    with caplog.at_level("INFO"):
        assert find.find_for_backfill() == []
    assert "kto: demo, as run demo__kto__" in caplog.text
    assert "to start these runs (1)" in caplog.text
    assert exchange.pushed["selection"]["evaluations"] == []  # `wait` must not wait for them


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_backfill_that_airflow_would_reject_names_the_setting(register, context, monkeypatch, dry_run):
    for name in ("a", "b", "c"):
        register(name, 30)
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
    context(params=PARAMS | {"dry_run": dry_run})
    with pytest.raises(AirflowFailException, match=r"\(3 runs\); expected at most 2\. Set .*_MAP_LENGTH=3 for"):
        find.find_for_backfill()
    context(params=PARAMS | {"match": ["a", "b"]})
    assert names(find.find_for_backfill()) == ["a", "b"]


def test_a_night_starts_as_many_as_airflow_accepts_and_the_next_one_the_rest(register, context, monkeypatch):
    for days, name in enumerate(("new", "late", "latest")):
        register(name, days + 0.5)
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
    exchange = context()
    first = find.find_for_night()
    assert names(first) == ["latest", "late"]
    kept = Selection.model_validate(exchange.pushed["selection"])
    assert [one.checkpoint for one in kept.evaluations] == ["latest", "late"]
    assert "The next night takes the rest" in kept.left_out["new: demo"]
    context(states={job["trigger_run_id"]: "running" for job in first})
    assert names(find.find_for_night()) == ["new"]


def test_a_night_starts_again_what_the_infrastructure_ended(register, context):
    register("new", 0.5)
    context()
    (first,) = find.find_for_night()
    write_note(Settings().store, "demo", "new", "demo_cloze", first["trigger_run_id"], "Evicted 30 times")
    context(states={first["trigger_run_id"]: "failed"})
    (again,) = find.find_for_night()
    assert again["trigger_run_id"] != first["trigger_run_id"]
    assert again["conf"] == first["conf"] | {"tasks": ["demo_cloze"]}
    context(states={job["trigger_run_id"]: "failed" for job in (first, again)})
    assert find.find_for_night() == []


def test_a_backfilled_night_that_airflow_would_reject_fails(register, context, monkeypatch):
    register("a", 1.5)
    register("b", 1.5)
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "1")
    context(run_type="backfill", data_interval_start=NOW - 2 * DAY, data_interval_end=NOW - DAY)
    with pytest.raises(AirflowFailException, match="too large"):
        find.find_for_night()


def test_an_invalid_date_is_named(register, context):
    context(params=PARAMS | {"registered_from": "yesterday"})
    with pytest.raises(AirflowFailException, match="registered_from"):
        find.find_for_backfill()


def test_a_registration(register, context):
    register("kto", 30)
    context(partition_key="kto")
    (job,) = find.find_for_registration()
    assert job["conf"]["checkpoint"] == "kto"
    assert not job["wait_for_completion"]


def test_a_registration_under_an_unusual_name(register, context):
    register("llama3-8b_sft+kto", 30)
    context(partition_key="llama3-8b_sft+kto")
    (job,) = find.find_for_registration()
    assert job["conf"]["checkpoint"] == safe_name("llama3-8b_sft+kto")
    assert re.fullmatch(r"[A-Za-z0-9_.~:+-]+", job["trigger_run_id"])  # what Airflow accepts as a run's name
    assert len(job["trigger_run_id"]) <= 250


@pytest.mark.parametrize(
    ("ages", "started"), [([0.0], True), ([0.9], True), ([1.1], False), ([48.0], False), ([48.0, 0.1], True)]
)
def test_an_event_that_waited_while_the_dag_was_paused_is_left_to_the_night(register, context, ages, started):
    register("kto", 0.5)
    now = datetime.now(UTC)
    exchange = context(partition_key="kto", events=[now - timedelta(hours=age) for age in ages])
    assert bool(find.find_for_registration()) == started
    selection = Selection.model_validate(exchange.pushed["selection"])
    if not started:
        assert (
            f"the event is {ages[0]} hours old; expected at most 1. The next night takes" in selection.left_out["kto"]
        )
        context()
        assert names(find.find_for_night()) == ["kto"]


def test_airflow_gives_the_task_the_times_of_its_events():
    assert "timestamp" in AssetEventDagRunReference.model_fields
    assert "consumed_asset_events" in DagRun.model_fields


@pytest.mark.parametrize("name", ["nobody", "../kto", "{{ 1 }}", None])
def test_a_registration_of_an_unknown_checkpoint(register, context, name):
    register("kto", 30)
    context(partition_key=name)
    with pytest.raises((BadInput, AirflowFailException)):
        find.find_for_registration()
