"""Why a stage failed, as a named error, and whether Airflow retries it.

    StageFailure
    ├── Final                 not retried: the same would happen
    │   ├── OutOfMemory         the container used more memory than its profile allows
    │   ├── ImageUnavailable    Kubernetes cannot pull the image
    │   ├── PodRefused          Kubernetes rejected the pod, or cannot create its container
    │   ├── RunTimeout          the pod ran longer than its profile allows
    │   └── StageFailed         one of our exit codes: bad input, data unavailable, judge refused, no result
    └── Infrastructure        retried with back-off: nothing is wrong with the evaluation
        ├── Evicted             the node ran out of a resource, or a pod with higher priority needed it
        ├── NodeLost            the node disappeared
        ├── PodLost             somebody deleted the pod
        ├── Unschedulable       no node accepted the pod in time, or the chosen node rejected it
        ├── StartTimeout        the pod had a node, but its container did not start in time
        ├── QuotaExceeded       the namespace's quota is used up
        └── StageInterrupted    killed by a signal, or one of our exit codes: incomplete, store unusable

Finished work is kept, so a retry does only the rest.
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
"""Name of the container that runs the stage."""
PERMANENT = {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY}
"""Statuses with which Kubernetes rejects a new pod for good: a retry would get the same one."""
# The kubelet's reasons why a container is waiting.
IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
# Reasons of the pod, or of its condition DisruptionTarget:
# https://kubernetes.io/docs/concepts/workloads/pods/disruptions/
LOST_NODE = {"NodeLost", "DeletionByTaintManager", "DeletionByPodGC", "NodeShutdown", "Shutdown", "Terminated"}
DISRUPTED = {"Evicted", "Preempting", "PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"}


class StageFailure(AirflowException):
    """A stage without a result. The message has the last log line."""


class Final(StageFailure):
    """Base class of the failures that Airflow does not retry."""


class Infrastructure(StageFailure):
    """Base class of the failures that Airflow retries with back-off."""


class OutOfMemory(Final):
    """The container used more memory than its profile allows."""


class ImageUnavailable(Final):
    """Kubernetes cannot pull the image. Not retried, because the kubelet has retried already."""


class PodRefused(Final):
    """Kubernetes rejected the pod, or cannot create its container (a missing Secret, for example)."""


class RunTimeout(Final):
    """The pod ran longer than its profile allows."""


class StageFailed(Final):
    """The command ended with one of our exit codes that a retry cannot fix."""


class Evicted(Infrastructure):
    """The node ran out of a resource, or a pod with higher priority needed it."""


class NodeLost(Infrastructure):
    """The node disappeared."""


class PodLost(Infrastructure):
    """Somebody else deleted the pod."""


class Unschedulable(Infrastructure):
    """No node accepted the pod in time, or the chosen node rejected it."""


class StartTimeout(Infrastructure):
    """The pod had a node, but its container did not start in time."""


class QuotaExceeded(Infrastructure):
    """The namespace's quota is used up."""


class StageInterrupted(Infrastructure):
    """The command was killed, or ended with one of our exit codes that a retry can fix."""


# Airflow applies these rules in the task's process, to the exception itself. Retries and delays are the task's.
RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        # The operator itself raises BadInput, for example if somebody broke the cluster file after the plan was made.
        RetryRule(exception=[Final, errors.BadInput], action=RetryAction.FAIL, reason="the same would happen again"),
        RetryRule(exception=QuotaExceeded, retry_delay=timedelta(minutes=5), reason="waiting for quota"),
        RetryRule(exception=Infrastructure, reason="nothing is wrong with the evaluation; finished work is kept"),
    ]
)


def failure(exit_code: int, words: str) -> StageFailure:
    """Return the failure for a command's exit code (negative: the signal that ended it) and its last log line."""
    if exit_code < 0:
        return StageInterrupted(f"killed by signal {-exit_code}; last log line: {words}")
    classes = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)]
    known = {error.exit_code: error for error in classes if issubclass(error, errors.HalosEvalError)}
    if kind := known.get(exit_code):
        return (StageInterrupted if kind.retryable else StageFailed)(words or f"{kind.__name__} without a message")
    if exit_code > 128:
        return StageInterrupted(f"killed by signal {exit_code - 128}; last log line: {words}")
    return StageInterrupted(f"ended with exit code {exit_code}; last log line: {words}")


def refused(error: ApiException) -> StageFailure | None:
    """Return the failure for an error of Kubernetes about a new pod; None if the server itself has a problem."""
    message = f"Kubernetes rejected the pod ({error.status} {error.reason}): {error.body}"
    if error.status == HTTPStatus.FORBIDDEN and "exceeded quota" in str(error.body):
        return QuotaExceeded(message)
    if error.status in PERMANENT:
        return PodRefused(f"{message}. Check the Role, the namespace and the profile in the cluster file")
    return None


def diagnose(pod: V1Pod) -> StageFailure:
    """Return why ``pod`` did not succeed, from its status alone."""
    status, name, state = pod.status, pod.metadata.name, _state(pod)
    # A cancelled disruption leaves its condition behind, with the status False.
    reasons = {one.reason for one in _conditions(pod, "DisruptionTarget", "True")} | {status.reason}
    disruption = f"{name}: {', '.join(sorted(filter(None, reasons)))} {status.message or ''}".strip()
    line = last_log_line(state.terminated.message) if state and state.terminated else ""
    log = f". Last log line: {line}" if line else ""
    if reasons & LOST_NODE:
        return NodeLost(disruption + log)
    if reasons & DISRUPTED:
        return Evicted(disruption + log)
    if status.reason == "DeadlineExceeded":
        return RunTimeout(
            f"{name} ran longer than runTimeoutSeconds of its profile ({status.message}). Raise it, or use a larger "
            f"profile{log}"
        )
    if state and state.terminated:
        return _ended(pod, state.terminated)
    if pod.metadata.deletion_timestamp:
        return PodLost(f"{name} was deleted before it ended")
    return _never_ran(pod)


def _conditions(pod: V1Pod, kind: str, status: str) -> list[V1PodCondition]:
    return [one for one in pod.status.conditions or () if (one.type, one.status) == (kind, status)]


def _state(pod: V1Pod) -> V1ContainerState | None:
    return next((one.state for one in pod.status.container_statuses or () if one.name == BASE), None)


def _ended(pod: V1Pod, end: Any) -> StageFailure:
    line = last_log_line(end.message)
    if end.reason == "OOMKilled":
        return OutOfMemory(
            f"{pod.metadata.name} ran out of memory. Raise memory in its profile (/dev/shm counts), or lower "
            f"max_model_len. Last log line: {line}"
        )
    if pod.metadata.deletion_timestamp and end.exit_code in {128 + signal.SIGTERM, 128 + signal.SIGKILL}:
        return PodLost(f"{pod.metadata.name} was deleted while it ran. Last log line: {line}")
    return failure(end.exit_code, line)


def _never_ran(pod: V1Pod) -> StageFailure:
    name, status = pod.metadata.name, pod.status
    # A judge that is served has two containers, and the pod is pending until both run.
    states = [one.state for one in status.container_statuses or () if one.state]
    waiting = next((state.waiting for state in states if state.waiting), None)
    reason = f"{name}: {waiting.reason}: {waiting.message}." if waiting else ""
    if waiting and waiting.reason in IMAGE_REASONS:
        return ImageUnavailable(f"{reason} Check images and imagePullSecrets in the cluster file")
    if waiting and waiting.reason in CONFIG_REASONS:
        return PodRefused(f"{reason} Check secrets in the cluster file")
    if status.phase == "Failed":
        return Unschedulable(f"the node rejected {name}: {status.reason}: {status.message}")
    if unbound := _conditions(pod, "PodScheduled", "False"):
        return Unschedulable(
            f"no node accepted {name} within scheduleTimeoutSeconds of its profile: {unbound[0].message}. Request "
            "less, or add nodes"
        )
    return StartTimeout(
        f"{name} did not start within startTimeoutSeconds of its profile: {waiting.reason if waiting else status.phase}"
    )


def last_log_line(log: str | None) -> str:
    """Return the line at the end of a log that best explains the failure."""
    return last_error(log or "")
