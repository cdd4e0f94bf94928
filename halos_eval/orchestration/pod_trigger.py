"""The trigger that waits for a stage's pod: Airflow's own, with two differences.

Its reads of logs cannot exhaust a triggerer. Airflow's reads a whole interval of a log into memory, for all pods at the
same moment, and after a restart of the triggerer the whole logs: https://github.com/apache/airflow/pull/73044.

It notices a node that does not answer any more. Kubernetes deletes the pods of such a node, but they keep their last
status, which is Running, as long as the Node object exists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.exceptions import KubernetesApiError
from airflow.providers.cncf.kubernetes.triggers.pod import ContainerState, KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import AsyncPodManager
from airflow.triggers.base import TriggerEvent
from kubernetes_asyncio.client import ApiException
from kubernetes_asyncio.client.models import V1Pod
from pendulum import DateTime

AT_ONCE = 4
"""Logs that a triggerer reads at the same time. The kubelet keeps 10 MiB of a log, which takes more when decoded."""
LOOK_BACK = timedelta(minutes=5)
"""How far a first read goes back. A new triggerer does not know what the one before it has read."""
LONGEST_WAIT, LONGEST_READ = 5.0, 20.0
"""Seconds until a read waits for its next interval, or ends. Meanwhile the trigger does not see that its pod has ended.

Airflow alone tries a read five times, for a minute each.
"""
_reads = asyncio.Semaphore(AT_ONCE)
UNREACHABLE = "unreachable"
"""Status of the event for a pod whose node does not answer."""
LONGEST_END = 120.0
"""Seconds after its grace period in which a deleted pod ends, if its node answers."""


class BoundedLogs(AsyncPodManager):
    """Reads few logs at a time, and no old lines. Logs that cannot be read neither end nor delay the wait for a pod."""

    async def fetch_container_logs_before_current_sec(
        self, pod: V1Pod, container_name: str, since_time: DateTime | None = None
    ) -> DateTime | None:
        """Write new lines to the task's log. Return the time from which the next read goes on."""
        since = since_time or DateTime.instance(datetime.now(UTC) - LOOK_BACK)
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                await _reads.acquire()
        except TimeoutError:
            return since_time
        try:
            async with asyncio.timeout(LONGEST_READ):
                return await super().fetch_container_logs_before_current_sec(pod, container_name, since)
        except (ApiException, ClientError, KubernetesApiError, TimeoutError) as error:
            self.log.warning("the log of %s could not be read now: %r", pod.metadata.name, error)
            return since_time
        finally:
            _reads.release()


class StagePodTrigger(KubernetesPodTrigger):
    """Fires when the pod has ended or could not start, or if its node does not answer."""

    _deleted: float | None = None
    """When the pod was first seen to be deleted, by this process's own clock."""
    _unreachable = False

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the event with which the task resumes."""
        async for event in super().run():
            if self._unreachable:
                event.payload["status"] = UNREACHABLE
            yield event

    def define_pod_container_state(self, pod: V1Pod) -> ContainerState:
        """Return the state of the pod's container; FAILED if nothing will report its end."""
        state: ContainerState = super().define_pod_container_state(pod)
        if state is not ContainerState.RUNNING or pod.metadata.deletion_timestamp is None:
            return state
        self._deleted = self._deleted or time.monotonic()
        grace = pod.metadata.deletion_grace_period_seconds or 0
        self._unreachable = time.monotonic() - self._deleted > grace + LONGEST_END
        return ContainerState.FAILED if self._unreachable else state

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for Airflow's database."""
        return f"{StagePodTrigger.__module__}.{StagePodTrigger.__qualname__}", super().serialize()[1]

    @cached_property
    def pod_manager(self) -> AsyncPodManager:
        """What reads the pod and its log."""
        return BoundedLogs(async_hook=self.hook)
