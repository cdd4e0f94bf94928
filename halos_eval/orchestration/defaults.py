"""Defaults of all DAGs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import CronDataIntervalTimetable

from halos_eval.config.settings import Settings
from halos_eval.orchestration.failures import RETRY_POLICY

DEFAULT_ARGS: dict[str, Any] = {
    "owner": "halos-eval",
    "retries": 4,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=30),
    "retry_policy": RETRY_POLICY,
}


def nights() -> CronDataIntervalTimetable:
    """Return the timetable of the nights. A night's interval is the time since the previous night."""
    settings = Settings()
    return CronDataIntervalTimetable(settings.night, timezone=settings.timezone)
