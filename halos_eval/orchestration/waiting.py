"""Stages that wait for a vendor's batch: their task is rescheduled, as a sensor's is.

Until then it holds no pod, no worker and no slot of its pool, which a deferred task would hold. Nor is it a retry.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk.exceptions import AirflowRescheduleException

from halos_eval.orchestration.failures import StageWaiting

UNNAMED = timedelta(minutes=10)
"""If the log names no time, look again after this time."""
LONGEST = timedelta(hours=2)
"""Whatever the log says, look again after this time."""


def rescheduled(waiting: StageWaiting) -> AirflowRescheduleException:
    """Return the exception with which the task starts again at the time that the stage named."""
    now = datetime.now(UTC)
    moment = min(max(waiting.until or now + UNNAMED, now), now + LONGEST)
    return AirflowRescheduleException(moment)  # type: ignore[no-untyped-call]
