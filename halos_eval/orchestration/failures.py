"""Why a stage did not end well, as Airflow sees it, and whether it is tried again.

    StageFailure
    ├── Final                 not tried again: the same would happen
    │   ├── OutOfMemory         the container took more memory than its profile gives
    │   ├── ImageUnavailable    the image cannot be pulled
    │   ├── PodRefused          Kubernetes does not take the pod, or cannot make its container
    │   ├── RunTimeout          the pod ran longer than its profile allows
    │   └── StageFailed         our own exit code: bad input, no data, judge refused, no result
    └── Infrastructure        tried again with back-off: nothing is wrong with the evaluation
        ├── Evicted             the node was short of something, or something more important needed it
        ├── NodeLost            the node went away
        ├── PodLost             the pod was deleted by somebody else
        ├── Unschedulable       no node took the pod in time, or the chosen one refused it
        ├── StartTimeout        there was a node, but the container did not start in time
        ├── QuotaExceeded       the namespace's quota is used up
        └── StageInterrupted    killed by a signal, or our own exit code: incomplete, store not usable

What a stage has finished is kept, so a retry does only the rest.
"""

from __future__ import annotations

import signal
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowException

from halos_eval import errors
from halos_eval.processes import last_error

if TYPE_CHECKING:
    from kubernetes.client import ApiException, V1ContainerState, V1Pod, V1PodCondition

BASE = "base"
"""Name of the container that does the work."""
OURS = {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY}
"""Answers of Kubernetes to a new pod that will be the same next time."""
# A container's waiting reasons, as kubelet gives them.
IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
# The condition DisruptionTarget (https://kubernetes.io/docs/concepts/workloads/pods/disruptions/), or the pod's reason.
LOST_NODE = {"NodeLost", "DeletionByTaintManager", "DeletionByPodGC", "NodeShutdown", "Shutdown", "Terminated"}
DISRUPTED = {"Evicted", "Preempting", "PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"}


class StageFailure(AirflowException):
    """A stage has no result. The message has the pod's last words."""


class Final(StageFailure):
    """Not tried again."""


class Infrastructure(StageFailure):
    """Tried again with back-off."""


class OutOfMemory(Final):
    """The container took more memory than its profile gives."""


class ImageUnavailable(Final):
    """The image cannot be pulled. The kubelet has tried for a while already."""


class PodRefused(Final):
    """Kubernetes does not take the pod, or cannot make its container (a missing Secret, for example)."""


class RunTimeout(Final):
    """The pod ran longer than its profile allows."""


class StageFailed(Final):
    """The command ended with one of our exit codes that a retry cannot mend."""


class Evicted(Infrastructure):
    """The pod had to make room."""


class NodeLost(Infrastructure):
    """The node went away."""


class PodLost(Infrastructure):
    """The pod is gone, and not by us."""


class Unschedulable(Infrastructure):
    """No node took the pod in time, or the one that was chosen refused it."""


class StartTimeout(Infrastructure):
    """The container did not start in time."""


class QuotaExceeded(Infrastructure):
    """The namespace's quota is used up."""


class StageInterrupted(Infrastructure):
    """The command was killed, or ended with one of our exit codes that a retry can mend."""


# Judged in the process that ran the task, by the exception itself; retries and delays are those of the task.
RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        # BadInput: what the operator itself finds wrong, such as a cluster's file that was broken meanwhile
        RetryRule(exception=[Final, errors.BadInput], action=RetryAction.FAIL, reason="the same would happen again"),
        RetryRule(exception=QuotaExceeded, retry_delay=timedelta(minutes=5), reason="waiting for quota"),
        RetryRule(exception=Infrastructure, reason="nothing is wrong with the evaluation: what is finished is kept"),
    ]
)


def failure(exit_code: int, words: str) -> StageFailure:
    """The failure for a command's exit code (negative: the signal that ended it) and its last words."""
    if exit_code < 0:
        return StageInterrupted(f"killed by signal {-exit_code}; its last words: {words}")
    classes = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)]
    known = {error.exit_code: error for error in classes if issubclass(error, errors.HalosEvalError)}
    if kind := known.get(exit_code):
        return (StageInterrupted if kind.retryable else StageFailed)(words or f"{kind.__name__}, without a word")
    if exit_code > 128:
        return StageInterrupted(f"killed by signal {exit_code - 128}; its last words: {words}")
    return StageInterrupted(f"ended with exit code {exit_code}; its last words: {words}")


def refused(error: ApiException) -> StageFailure | None:
    """The failure for what Kubernetes says to a new pod; None where it is the server that has a problem."""
    words = f"Kubernetes says {error.status} {error.reason}: {error.body}"
    if error.status == HTTPStatus.FORBIDDEN and "exceeded quota" in str(error.body):
        return QuotaExceeded(words)
    if error.status in OURS:
        return PodRefused(f"{words}. Check the Role, the namespace and the profile in the cluster's file")
    return None


def diagnose(pod: V1Pod) -> StageFailure:
    """Why ``pod`` has not succeeded, from its status alone."""
    status, name, state = pod.status, pod.metadata.name, _state(pod)
    # A disruption that was called off leaves its condition behind, with the status False.
    reasons = {one.reason for one in _conditions(pod, "DisruptionTarget", "True")} | {status.reason}
    told = f"{name}: {', '.join(sorted(filter(None, reasons)))} {status.message or ''}".strip()
    words = last_words(state.terminated.message) if state and state.terminated else ""
    said = f". Its last words: {words}" if words else ""
    if reasons & LOST_NODE:
        return NodeLost(told + said)
    if reasons & DISRUPTED:
        return Evicted(told + said)
    if status.reason == "DeadlineExceeded":
        return RunTimeout(f"{name} ran longer than runTimeoutSeconds of its profile: {status.message}{said}")
    if state and state.terminated:
        return _ended(pod, state.terminated)
    if pod.metadata.deletion_timestamp:
        return PodLost(f"{name} was deleted before it ended")
    return _never_ran(pod, state)


def _conditions(pod: V1Pod, kind: str, status: str) -> list[V1PodCondition]:
    return [one for one in pod.status.conditions or () if (one.type, one.status) == (kind, status)]


def _state(pod: V1Pod) -> V1ContainerState | None:
    return next((one.state for one in pod.status.container_statuses or () if one.name == BASE), None)


def _ended(pod: V1Pod, end: Any) -> StageFailure:
    words = last_words(end.message)
    if end.reason == "OOMKilled":
        return OutOfMemory(
            f"{pod.metadata.name} was killed for memory: raise memory in its profile (/dev/shm counts), or lower "
            f"max_model_len. Its last words: {words}"
        )
    if pod.metadata.deletion_timestamp and end.exit_code in {128 + signal.SIGTERM, 128 + signal.SIGKILL}:
        return PodLost(f"{pod.metadata.name} was deleted while it ran. Its last words: {words}")
    return failure(end.exit_code, words)


def _never_ran(pod: V1Pod, state: V1ContainerState | None) -> StageFailure:
    name, status = pod.metadata.name, pod.status
    waiting = state.waiting if state else None
    told = f"{name}: {waiting.reason}: {waiting.message}." if waiting else ""
    if waiting and waiting.reason in IMAGE_REASONS:
        return ImageUnavailable(f"{told} Check images in the cluster's file")
    if waiting and waiting.reason in CONFIG_REASONS:
        return PodRefused(f"{told} Check secrets in the cluster's file")
    if status.phase == "Failed":
        return Unschedulable(f"the node refused {name}: {status.reason}: {status.message}")
    if unbound := _conditions(pod, "PodScheduled", "False"):
        return Unschedulable(
            f"no node took {name} within scheduleTimeoutSeconds of its profile: {unbound[0].message}. Ask for less, or "
            "wait for nodes"
        )
    return StartTimeout(
        f"{name} did not start within startTimeoutSeconds of its profile: {waiting.reason if waiting else status.phase}"
    )


def last_words(log: str | None) -> str:
    """The line of a log's end that says best what went wrong."""
    return last_error(log or "")
