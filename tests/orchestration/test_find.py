"""The tasks that decide what is started: which interval, which runs, and what a dry run leaves undone."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError
from airflow.sdk.execution_time.comms import ErrorResponse

from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.orchestration import find
from halos_eval.planning.selection import Evaluation, Selection
from tests.doubles import make_checkpoint

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
POLICY = "{look_back_days: 3, message_after_hours: 2, rules: [{suites: [demo]}]}"
PARAMS = {
    "suite": "demo", "match": ["*"], "tags": {}, "registered_from": None, "registered_until": None,
    "only_missing": True, "at_most": 4, "priority": "backfill", "dry_run": False,
}  # fmt: skip


@pytest.fixture
def register(tmp_path, monkeypatch):
    """``register(name, days)``: a checkpoint that was registered so many days ago."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    monkeypatch.setenv("HALOS_EVAL_POLICY", str(tmp_path / "policy.yaml"))
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("HALOS_EVAL_STORE", f"file://{tmp_path}/store")

    def register(name, days):
        folder = make_checkpoint(tmp_path / "checkpoints" / name / "FINAL")
        then = (NOW - days * DAY).timestamp()
        for path in (*folder.iterdir(), folder):
            os.utime(path, (then, then))

    return register


@pytest.fixture
def context(monkeypatch):
    """``context(...)`` sets what Airflow tells a task; what it hands out is in its ``pushed``."""

    def context(states=None, params=PARAMS, **run):
        pushed = {}

        def state(dag_id, run_id):
            if run_id not in (states or {}):
                raise AirflowRuntimeError(ErrorResponse())
            return states[run_id]

        exchange = SimpleNamespace(
            xcom_push=pushed.__setitem__,
            xcom_pull=lambda task_ids, key: pushed.get(key),
            get_dagrun_state=state,
            get_dr_count=lambda dag_id, run_ids: sum(run_id in (states or {}) for run_id in run_ids),
            pushed=pushed,
        )
        interval = {key: run.pop(key) for key in ("data_interval_start", "data_interval_end") if key in run}
        about = SimpleNamespace(
            **{"run_type": "manual", "run_id": "one", "start_date": NOW, "partition_key": None} | run
        )
        given = {"ti": exchange, "dag_run": about, "params": params, **interval}
        monkeypatch.setattr(find, "get_current_context", lambda: given)
        return exchange

    return context


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


def test_what_was_started_before_is_not_started_again(register, context):
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


def test_a_registry_that_is_away_can_be_tried_again(register, context):
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


def test_a_dry_run_starts_nothing_and_tells_all(register, context, caplog):
    register("kto", 30)
    exchange = context(params=PARAMS | {"dry_run": True})
    with caplog.at_level("INFO"):
        assert find.find_for_backfill() == []
    assert "kto: demo, as run demo__kto__" in caplog.text
    assert "start these 1" in caplog.text
    assert exchange.pushed["selection"]["evaluations"] == []  # so that nobody waits for them


def test_a_date_that_is_none_is_told(register, context):
    context(params=PARAMS | {"registered_from": "yesterday"})
    with pytest.raises(AirflowFailException, match="registered_from"):
        find.find_for_backfill()


def test_a_registration(register, context):
    register("kto", 30)
    context(partition_key="kto")
    (job,) = find.find_for_registration()
    assert job["conf"]["checkpoint"] == "kto"
    assert not job["wait_for_completion"]


@pytest.mark.parametrize("name", ["nobody", "../kto", "{{ 1 }}", None])
def test_a_registration_of_what_is_none(register, context, name):
    register("kto", 30)
    context(partition_key=name)
    with pytest.raises((BadInput, AirflowFailException)):
        find.find_for_registration()


def test_what_is_open_is_waited_for_until_it_is_time(register, context):
    runs = {"a": "success", "b": "running", "c": "queued", "d": "failed"}
    evaluations = tuple(Evaluation(checkpoint=run, suite="demo", run_id=run) for run in (*runs, "gone"))
    exchange = context(states=runs, start_date=NOW - timedelta(hours=1))
    exchange.pushed["selection"] = Selection(evaluations=evaluations).model_dump(mode="json")
    assert find.runs_open() == ["b", "c"]
    assert timedelta(minutes=58) < find.time_left() < timedelta(hours=1)


def test_where_find_has_failed_nothing_is_waited_for(register, context):
    context()
    assert find.runs_open() == []


@pytest.fixture
def sent(monkeypatch):
    """The messages that would be sent."""
    sent = []
    monkeypatch.setattr(find, "send", sent.append)
    return sent


def test_a_night_with_nothing_to_do_says_so_and_is_green(register, context, sent):
    end = datetime(2026, 11, 24, 20, tzinfo=UTC)
    exchange = context(dag_id="nightly_evaluation", data_interval_end=end, run_type="scheduled")
    exchange.pushed["selection"] = Selection().model_dump(mode="json")
    find.send_report()
    (message,) = sent
    assert message.title == "nightly_evaluation 2026-11-24: nothing to do"


@pytest.mark.parametrize(("dry_run", "run_type"), [(True, "manual"), (False, "backfill")])
def test_nobody_is_told_of_what_was_not_to_be_done(register, context, sent, dry_run, run_type):
    exchange = context(params=PARAMS | {"dry_run": dry_run}, run_type=run_type, dag_id="backfill_evaluation")
    exchange.pushed["selection"] = Selection().model_dump(mode="json")
    find.send_report()
    assert sent == []


def test_a_state_that_cannot_be_asked_for_is_not_taken_for_an_end(register, context):
    exchange = context(states={})
    exchange.get_dr_count = lambda dag_id, run_ids: 1
    one = Evaluation(checkpoint="kto", suite="demo", run_id="a")
    exchange.pushed["selection"] = Selection(evaluations=(one,)).model_dump(mode="json")
    with pytest.raises(AirflowRuntimeError):
        find.runs_open()


@pytest.mark.parametrize("found", [None, "failed", "gone"])
def test_a_night_is_as_red_as_what_it_started(register, context, sent, found):
    exchange = context(states={"a": "failed"}, dag_id="nightly_evaluation", run_after=NOW)
    if found:
        run_id = "a" if found == "failed" else "b"
        one = Evaluation(checkpoint="kto", suite="demo", run_id=run_id)
        exchange.pushed["selection"] = Selection(evaluations=(one,)).model_dump(mode="json")
    with pytest.raises(AirflowFailException, match=f"nightly_evaluation {NOW:%Y-%m-%d}"):
        find.send_report()
    (message,) = sent
    assert message.failed
