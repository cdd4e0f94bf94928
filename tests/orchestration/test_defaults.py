"""The nights' intervals on days that have 23 or 25 hours."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pendulum
import pytest
from airflow.timetables.base import TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable

from halos_eval.orchestration.defaults import nights

BERLIN = "Europe/Berlin"


@pytest.mark.parametrize(
    ("cron", "changes"),
    [
        ("0 20 * * *", {"2026-03-29": 23, "2026-10-25": 25}),  # the hours of the interval that ends on that day
        ("30 2 * * *", {"2026-03-30": 23, "2026-10-25": 25}),  # a time that one day lacks and another has twice
    ],
)
def test_no_moment_is_in_two_nights_or_in_none(monkeypatch, cron, changes):
    monkeypatch.setenv("HALOS_EVAL_NIGHT", cron)
    monkeypatch.setenv("HALOS_EVAL_TIMEZONE", BERLIN)
    made = nights()
    timetable = CronDataIntervalTimetable(made.expression, timezone=pendulum.timezone(BERLIN))
    begin = pendulum.datetime(2026, 3, 1)
    interval = timetable.infer_manual_data_interval(run_after=begin)
    hours = {}
    while interval.end < pendulum.datetime(2026, 11, 30):
        info = timetable.next_dagrun_info(
            last_automated_data_interval=interval,
            restriction=TimeRestriction(earliest=interval.start, latest=None, catchup=True),
        )
        assert info.data_interval.start == interval.end
        interval = info.data_interval
        day = interval.end.astimezone(ZoneInfo(BERLIN)).date()
        hours[str(day)] = (interval.end - interval.start).total_seconds() / 3600
    assert {day: length for day, length in hours.items() if length != 24} == changes
    assert len(hours) == (pendulum.parse(max(hours)) - pendulum.parse(min(hours))).days + 1
