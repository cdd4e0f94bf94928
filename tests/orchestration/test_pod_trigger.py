"""The reads of pods' logs in a triggerer, with a double of Kubernetes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from aiohttp import ClientError
from airflow.sdk._shared.module_loading import import_string
from kubernetes_asyncio.client import (
    ApiException,
    V1ContainerState,
    V1ContainerStateRunning,
    V1ContainerStateTerminated,
    V1ContainerStatus,
    V1ObjectMeta,
    V1Pod,
    V1PodStatus,
)
from pendulum import DateTime

from halos_eval.orchestration import pod_trigger
from halos_eval.orchestration.pod_trigger import AT_ONCE, UNREACHABLE, BoundedLogs, StagePodTrigger

POD = SimpleNamespace(metadata=SimpleNamespace(name="halos-eval-harness-x1", namespace="halos"))


class Hook:
    """Double of the asynchronous hook: notes the reads, and how many there were at the same time."""

    def __init__(self, error=None, steps=1):
        self.error, self.steps, self.seconds, self.active, self.most = error, steps, [], 0, 0

    async def read_logs(self, name, namespace, container_name, since_seconds):
        self.seconds.append(since_seconds)
        self.active += 1
        self.most = max(self.most, self.active)
        for _ in range(self.steps):
            await asyncio.sleep(0)
        self.active -= 1
        if self.error:
            raise self.error
        return ["2026-01-01T00:00:00.000000000Z INFO a step"]


@pytest.fixture(autouse=True)
def _reads(monkeypatch):
    monkeypatch.setattr(pod_trigger, "_reads", asyncio.Semaphore(AT_ONCE))


def read(hook, pods=1, since=None):
    async def gather():
        logs = BoundedLogs(async_hook=hook)
        return await asyncio.gather(
            *(logs.fetch_container_logs_before_current_sec(POD, "base", since) for _ in range(pods))
        )

    return asyncio.run(gather())


def test_many_pods_are_read_a_few_at_a_time():
    hook = Hook()
    times = read(hook, pods=50)
    assert len(hook.seconds) == len(times) == 50
    assert hook.most == AT_ONCE


def test_a_new_triggerer_does_not_read_whole_logs():
    hook = Hook()
    read(hook)
    assert hook.seconds[0] in {300, 301}
    read(hook, since=DateTime.instance(datetime.now(UTC) - timedelta(seconds=29.5)))
    assert hook.seconds[1] in {30, 31}


@pytest.mark.parametrize("error", [ApiException(status=500), ClientError(), TimeoutError()])
def test_a_log_that_cannot_be_read_does_not_end_the_wait(error):
    since = DateTime.instance(datetime.now(UTC))
    assert read(Hook(error), since=since) == [since]


def test_a_pod_does_not_wait_for_the_logs_of_others(monkeypatch):
    monkeypatch.setattr(pod_trigger, "LONGEST_WAIT", 0)
    since, hook = DateTime.instance(datetime.now(UTC)), Hook(steps=1000)
    times = read(hook, pods=AT_ONCE + 1, since=since)
    assert len(hook.seconds) == AT_ONCE
    assert min(times[:AT_ONCE]) > times[AT_ONCE] == since  # the next read writes the lines of this interval too


def test_a_read_that_does_not_end_is_given_up_and_lets_the_next_one_read(monkeypatch):
    monkeypatch.setattr(pod_trigger, "LONGEST_READ", 0)
    since, hook = DateTime.instance(datetime.now(UTC)), Hook(steps=1000)
    assert read(hook, pods=2 * AT_ONCE, since=since) == [since] * 2 * AT_ONCE
    assert len(hook.seconds) == 2 * AT_ONCE


def test_airflow_finds_the_trigger_again():
    trigger = StagePodTrigger("pod", "halos", datetime.now(UTC), "base", logging_interval=30, trigger_kwargs={"a": 1})
    path, arguments = trigger.serialize()
    found = import_string(path)(**arguments)
    assert found.serialize() == (path, arguments)
    assert isinstance(found.pod_manager, BoundedLogs)


class Pods:
    """Double of the asynchronous hook with a pod that runs on, although it was deleted."""

    def __init__(self, deleted, grace=60):
        metadata = V1ObjectMeta(name="pod", namespace="halos", deletion_grace_period_seconds=grace)
        metadata.deletion_timestamp = datetime.now(UTC) if deleted else None
        state = V1ContainerState(running=V1ContainerStateRunning())
        container = V1ContainerStatus(name="base", image="i", image_id="", ready=True, restart_count=0, state=state)
        self.pod = V1Pod(metadata=metadata, status=V1PodStatus(phase="Running", container_statuses=[container]))
        self.reads = 0

    async def get_pod(self, name, namespace):
        self.reads += 1
        if self.reads > 200:
            self.pod.status.container_statuses[0].state = V1ContainerState(
                terminated=V1ContainerStateTerminated(exit_code=0)
            )
        return self.pod


@pytest.mark.parametrize(
    ("deleted", "longest", "status"), [(True, -61, UNREACHABLE), (True, 120, "success"), (False, -61, "success")]
)
def test_a_deleted_pod_whose_node_does_not_confirm_its_end_is_given_up(monkeypatch, deleted, longest, status):
    monkeypatch.setattr(pod_trigger, "LONGEST_END", longest)  # besides the pod's grace period of a minute
    monkeypatch.setattr(StagePodTrigger, "hook", Pods(deleted))
    trigger = StagePodTrigger("pod", "halos", datetime.now(UTC), "base", poll_interval=0, log_events_on_startup=False)

    async def first():
        return await anext(trigger.run())

    assert asyncio.run(first()).payload["status"] == status
