"""How often and how long a pod is started again after failures of the infrastructure, within one try of its task.

Airflow's retries are for what the evaluation itself can cause, and their number is fixed. A pod on a spot node can be
preempted more often than that.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.orchestration.failures import GpuFault, Infrastructure, InfrastructureFailed, QuotaExceeded

SHORTEST, LONGEST = timedelta(seconds=30), timedelta(minutes=30)
"""The first and the longest delay before a pod is started again; it doubles each time."""
QUOTA = timedelta(minutes=5)
"""Shortest delay for a quota that is used up: other pods must end first."""
GPU_FAULTS = 3
"""After so many, the evaluation itself may be the cause, and each costs the time to load the model."""


class Restarts(BaseModel):
    """The failures of the infrastructure in one try, which go with the deferred task."""

    model_config = FROZEN

    first: datetime
    """When the first one was noticed, in UTC."""
    counts: dict[str, int] = {}
    """How often each happened, by its class."""

    def __str__(self) -> str:
        return ", ".join(f"{kind} {count} {'time' if count == 1 else 'times'}" for kind, count in self.counts.items())


class Next(NamedTuple):
    """The next start of a pod."""

    at: datetime
    """UTC."""
    after: Restarts
    """The failures until then."""


def next_start(before: Restarts | None, failure: Infrastructure, budget: timedelta, now: datetime) -> Next:
    """Return when the pod is started again. Raise InfrastructureFailed if that is after the budget.

    :param before: the failures of this try until now.
    :param budget: how long after the first failure a pod may be started again.
    """
    kind = type(failure).__name__
    earlier = before or Restarts(first=now)
    count = earlier.counts.get(kind, 0) + 1
    after = earlier.model_copy(update={"counts": {**earlier.counts, kind: count}})
    delay = min(SHORTEST * 2 ** min(sum(after.counts.values()) - 1, 10), LONGEST)
    at = now + max(delay, QUOTA if isinstance(failure, QuotaExceeded) else SHORTEST)
    if isinstance(failure, GpuFault) and count >= GPU_FAULTS:
        raise InfrastructureFailed(
            f"{after} in {_hours(now - after.first)}; a pod is started {GPU_FAULTS} times at most, because the "
            f"evaluation itself may be the cause. Check the nodes' GPUs, then clear this task. The last: {failure}"
        ) from failure
    if at > after.first + budget:
        raise InfrastructureFailed(
            f"{after} in {_hours(now - after.first)}, with an infrastructureBudgetSeconds of {_hours(budget)} in the "
            f"profile. Fix what the last failure names, then clear this task; otherwise the next night starts it again "
            f"in a new run. The last: {failure}"
        ) from failure
    return Next(at, after)


def _hours(time: timedelta) -> str:
    return f"{time / timedelta(hours=1):.1f} hours"
