"""The tasks ``wait`` and ``report``: open runs, the time that is left, and when a report fails."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError

from halos_eval.orchestration import report
from halos_eval.orchestration.notify import NotDelivered
from halos_eval.planning.selection import Evaluation, Selection

NOW = datetime.now(UTC)


def test_open_runs_and_the_time_that_is_left(register, context):
    runs = {"a": "success", "b": "running", "c": "queued", "d": "failed"}
    evaluations = tuple(Evaluation(checkpoint=run, suite="demo", run_id=run) for run in (*runs, "gone"))
    exchange = context(states=runs, start_date=datetime.now(UTC) - timedelta(hours=1))
    exchange.pushed["selection"] = Selection(evaluations=evaluations).model_dump(mode="json")
    assert report.runs_open() == ["b", "c"]
    assert timedelta(minutes=30) < report.time_left() < timedelta(hours=1)


def test_nothing_is_open_if_find_failed(register, context):
    context()
    assert report.runs_open() == []


@pytest.fixture
def sent(monkeypatch):
    """The messages that would be sent."""
    sent = []
    monkeypatch.setattr(report, "send", sent.append)
    return sent


def test_a_night_without_work_says_so_and_succeeds(register, context, sent):
    end = datetime(2026, 11, 24, 20, tzinfo=UTC)
    exchange = context(dag_id="nightly_evaluation", data_interval_end=end, run_type="scheduled")
    exchange.pushed["selection"] = Selection().model_dump(mode="json")
    report.send_report()
    (message,) = sent
    assert message.title == "nightly_evaluation 2026-11-24: nothing to do"


@pytest.fixture
def beats(monkeypatch, sent):
    """How many messages had been sent at each heartbeat."""
    beats = []
    monkeypatch.setenv("HALOS_EVAL_HEARTBEAT_URL", "https://example.org/uuid")
    monkeypatch.setattr(report, "beat", lambda url: beats.append((url.get_secret_value(), len(sent))))
    return beats


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_heartbeat_follows_the_message_of_a_night_whether_runs_failed_or_not(register, context, beats, state):
    exchange = context(states={"a": state}, dag_id="nightly_evaluation", run_type="scheduled", run_after=NOW)
    one = Evaluation(checkpoint="kto", suite="demo", run_id="a")
    exchange.pushed["selection"] = Selection(evaluations=(one,)).model_dump(mode="json")
    with suppress(AirflowFailException):
        report.send_report()
    assert beats == [("https://example.org/uuid", 1)]


@pytest.mark.parametrize(
    ("dag_id", "run_type"),
    [("backfill_evaluation", "manual"), ("nightly_evaluation", "manual"), ("nightly_evaluation", "backfill")],
)
def test_only_regular_nights_have_a_heartbeat(register, context, beats, dag_id, run_type):
    exchange = context(dag_id=dag_id, run_type=run_type, run_after=NOW)
    exchange.pushed["selection"] = Selection(complete=("kto: demo",)).model_dump(mode="json")
    report.send_report()
    assert beats == []


def test_there_is_no_heartbeat_if_the_message_was_not_sent(register, context, beats, monkeypatch):
    def send(message):
        raise NotDelivered

    monkeypatch.setattr(report, "send", send)
    context(dag_id="nightly_evaluation", run_type="scheduled", run_after=NOW)
    with pytest.raises(NotDelivered):
        report.send_report()
    assert beats == []


@pytest.mark.parametrize(("dry_run", "run_type"), [(True, "manual"), (False, "backfill")])
def test_dry_runs_and_backfilled_nights_without_work_send_no_message(register, context, sent, dry_run, run_type):
    exchange = context(params={"dry_run": dry_run}, run_type=run_type, dag_id="backfill_evaluation")
    exchange.pushed["selection"] = Selection().model_dump(mode="json")
    report.send_report()
    assert sent == []


def test_an_unreadable_state_of_a_run_that_exists_is_an_error(register, context):
    exchange = context(states={})
    exchange.get_dr_count = lambda dag_id, run_ids: 1
    one = Evaluation(checkpoint="kto", suite="demo", run_id="a")
    exchange.pushed["selection"] = Selection(evaluations=(one,)).model_dump(mode="json")
    with pytest.raises(AirflowRuntimeError):
        report.runs_open()


@pytest.mark.parametrize("found", [None, "failed", "gone"])
def test_the_report_fails_if_a_run_failed(register, context, sent, found):
    exchange = context(states={"a": "failed"}, dag_id="nightly_evaluation", run_after=NOW)
    if found:
        run_id = "a" if found == "failed" else "b"
        one = Evaluation(checkpoint="kto", suite="demo", run_id=run_id)
        exchange.pushed["selection"] = Selection(evaluations=(one,)).model_dump(mode="json")
    with pytest.raises(AirflowFailException, match=f"nightly_evaluation {NOW:%Y-%m-%d}"):
        report.send_report()
    (message,) = sent
    assert message.failed
