"""The trigger that waits for a stage's pod: Airflow's own, but its reads of logs cannot exhaust a triggerer.

Airflow's reads a whole interval of a log into memory, for all pods at the same moment, and after a restart of the
triggerer the whole logs: https://github.com/apache/airflow/pull/73044.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.exceptions import KubernetesApiError
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import AsyncPodManager
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
    """Fires when the pod has ended or could not start."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for Airflow's database."""
        return f"{StagePodTrigger.__module__}.{StagePodTrigger.__qualname__}", super().serialize()[1]

    @cached_property
    def pod_manager(self) -> AsyncPodManager:
        """What reads the pod and its log."""
        return BoundedLogs(async_hook=self.hook)
