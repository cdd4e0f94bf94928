"""Why Kueue does not admit a pod, if that will not change by itself.

Kueue holds a pod back with a scheduling gate until its queue has quota. A busy queue and a queue that does not exist
look the same in the pod. The difference is in Kueue's objects: the LocalQueue, and the Workload that it makes for the
pod.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from kubernetes.client import ApiClient, ApiException, CustomObjectsApi, V1Pod, V1PodCondition

GROUP, VERSIONS = "kueue.x-k8s.io", ("v1beta2", "v1beta1")
CHECK_SECONDS = 180
"""How long a pod waits at its gate until its queue is looked at."""
# Kueue's reasons, and its messages in versions without them, for requests that exceed the whole quota or fit no flavor.
INADMISSIBLE = {"Inadmissible", "Misconfigured", "ExceedsMaxQuota"}
BUSY = "insufficient unused quota"
"""In Kueue's message about each flavor: other workloads are in the way. One such flavor is enough to wait for."""
NEVER = re.compile(r"maximum capacity|unavailable in ClusterQueue|untolerated taint|doesn't match node")


def scheduled(pod: V1Pod) -> V1PodCondition | None:
    """Return the condition that says since when ``pod`` has a node; None if it has none yet."""
    return next(
        (one for one in pod.status.conditions or () if (one.type, one.status) == ("PodScheduled", "True")), None
    )


def gated(pod: V1Pod) -> bool:
    """Return whether ``pod`` waits at a scheduling gate."""
    return scheduled(pod) is None and any(one.reason == "SchedulingGated" for one in pod.status.conditions or ())


def queue_problem(client: ApiClient, pod: V1Pod, queue: str) -> str:
    """Return why ``queue`` will never admit ``pod``; empty if it may only be busy, or if that cannot be read."""
    api, namespace = CustomObjectsApi(client), pod.metadata.namespace
    try:
        local = _get(api, namespace, queue)
        if local is None:
            return f"the LocalQueue {queue} does not exist in namespace {namespace}"
        if problem := _unmet(local, "Active"):
            return f"the LocalQueue {queue} is not active: {problem['message']}"
        workloads = [one for one in _workloads(api, namespace) if _owned(one, pod)]
    except ApiException as error:
        if error.status == HTTPStatus.FORBIDDEN:
            return ""  # without the chart's Role; the pod's own timeout applies
        raise
    found = [problem for one in workloads if (problem := _unmet(one, "QuotaReserved"))]
    never = [one["message"] for one in found if _never(one)]
    return f"the LocalQueue {queue} can never admit it: {never[0]}" if never else ""


def _never(condition: dict[str, Any]) -> bool:
    if condition.get("reason") in INADMISSIBLE:
        return True
    return BUSY not in condition["message"] and bool(NEVER.search(condition["message"]))


def _get(api: CustomObjectsApi, namespace: str, queue: str) -> dict[str, Any] | None:
    for version in VERSIONS:
        try:
            found: dict[str, Any] = api.get_namespaced_custom_object(GROUP, version, namespace, "localqueues", queue)
        except ApiException as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
        else:
            return found
    return None


def _workloads(api: CustomObjectsApi, namespace: str) -> list[dict[str, Any]]:
    for version in VERSIONS:
        try:
            found = api.list_namespaced_custom_object(GROUP, version, namespace, "workloads")
        except ApiException as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
        else:
            return list(found["items"])
    return []


def _owned(workload: dict[str, Any], pod: V1Pod) -> bool:
    return any(one.get("uid") == pod.metadata.uid for one in workload["metadata"].get("ownerReferences", ()))


def _unmet(found: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """Return the condition ``kind`` if it is False."""
    conditions = found.get("status", {}).get("conditions", ())
    return next((one for one in conditions if (one["type"], one["status"]) == (kind, "False")), None)
