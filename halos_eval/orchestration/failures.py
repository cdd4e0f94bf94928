"""Why a stage failed, as a named error, and what follows: a new pod in the same try, a retry by Airflow, or nothing.

    StageFailure
    ├── Final                 not retried: somebody has to act
    │   ├── OutOfMemory           the container used more memory than its profile allows
    │   ├── ImageUnavailable      the image does not exist, or the registry rejects the credentials
    │   ├── PodRefused            Kubernetes rejected the pod, or cannot create its container
    │   ├── QueueRejected         Kueue will never admit the pod to its queue
    │   ├── RunTimeout            the pod ran longer than its profile allows
    │   ├── StageFailed           one of our exit codes: bad input, data unavailable, judge refused, no result
    │   └── InfrastructureFailed  the infrastructure failed until the profile's budget was used up
    ├── Infrastructure        a new pod starts in the same try (restarts.py): nothing is wrong with the evaluation
    │   ├── Evicted               the node ran out of a resource, or a pod with higher priority needed it
    │   ├── NodeLost              the node disappeared
    │   ├── NodeUnreachable       the node does not answer, so that nobody knows whether the pod still runs
    │   ├── PodLost               somebody deleted the pod
    │   ├── Unschedulable         no node accepted the pod in time, or the chosen node rejected it
    │   ├── StartTimeout          the pod had a node, but its container did not start in time
    │   ├── ImageNotPulled        the registry did not answer, or not with the image
    │   ├── QuotaExceeded         the namespace's quota is used up
    │   ├── GpuFault              a GPU, its driver or the connection between GPUs failed
    │   └── ApiUnavailable        the API server of Kubernetes did not answer as expected
    ├── StageInterrupted      retried with back-off: killed by a signal, or our exit codes incomplete and store unusable
    └── StageWaiting          the vendor works on a batch: the operators reschedule the task, which is no retry

Finished work is kept, so a retry or a new pod does only the rest.
"""

from __future__ import annotations

import re
import signal
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowException

from halos_eval import errors
from halos_eval.orchestration.gpu_faults import gpu_fault
from halos_eval.processes import last_error

if TYPE_CHECKING:
    from kubernetes.client import ApiException, V1ContainerState, V1Pod, V1PodCondition

GPU_CODES = {errors.HalosEvalError.exit_code, errors.EvaluationFailed.exit_code}
"""Our exit codes that a fault of a GPU can cause."""
BASE = "base"
"""Name of the container that runs the stage."""
SERVER = "server"
"""Name of the container that serves a judge. It ends by itself when the other container has ended."""
PERMANENT = {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY}
"""Statuses with which Kubernetes rejects a new pod for good: a retry would get the same one."""
OOM = "OOMKilled"
"""The kubelet's reason why a container has ended."""
# The kubelet's reasons why a container is waiting.
PULL_REASONS = {"ErrImagePull", "ImagePullBackOff"}
IMAGE_REASONS = {"InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
# What registries say to a request that they will always reject. A name server says "no such host".
NO_IMAGE = re.compile(r"not found|manifest unknown|name unknown|unauthorized|denied|forbidden|authentication", re.I)
CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
# Reasons of the pod, or of its condition DisruptionTarget:
# https://kubernetes.io/docs/concepts/workloads/pods/disruptions/
LOST_NODE = {"NodeLost", "DeletionByTaintManager", "DeletionByPodGC", "NodeShutdown", "Shutdown", "Terminated"}
DISRUPTED = {"Evicted", "Preempting", "PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"}

AGAIN = re.compile(r"again after (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)$")


class StageFailure(AirflowException):
    """A stage without a result. The message has the last log line."""


class Final(StageFailure):
    """Base class of the failures that Airflow does not retry."""


class Infrastructure(StageFailure):
    """Base class of the failures after which the operator starts a new pod in the same try."""


class StageInterrupted(StageFailure):
    """The command was killed, or ended with one of our exit codes that a retry can fix."""


class OutOfMemory(Final):
    """The container used more memory than its profile allows."""


class ImageUnavailable(Final):
    """The image does not exist, or the registry rejects the credentials."""


class PodRefused(Final):
    """Kubernetes rejected the pod, or cannot create its container (a missing Secret, for example)."""


class QueueRejected(Final):
    """Kueue will never admit the pod to its queue."""


class RunTimeout(Final):
    """The pod ran longer than its profile allows."""


class StageFailed(Final):
    """The command ended with one of our exit codes that a retry cannot fix."""


class InfrastructureFailed(Final):
    """The infrastructure failed until the profile's budget was used up."""


class Evicted(Infrastructure):
    """The node ran out of a resource, or a pod with higher priority needed it."""


class NodeLost(Infrastructure):
    """The node disappeared."""


class NodeUnreachable(Infrastructure):
    """The node does not answer, so that nobody knows whether the pod still runs."""


class PodLost(Infrastructure):
    """Somebody else deleted the pod."""


class Unschedulable(Infrastructure):
    """No node accepted the pod in time, or the chosen node rejected it."""


class StartTimeout(Infrastructure):
    """The pod had a node, but its container did not start in time."""


class ImageNotPulled(Infrastructure):
    """The registry did not answer, or not with the image."""


class QuotaExceeded(Infrastructure):
    """The namespace's quota is used up."""


class GpuFault(Infrastructure):
    """A GPU, its driver or the connection between GPUs failed."""


class ApiUnavailable(Infrastructure):
    """The API server of Kubernetes did not answer as expected."""


class StageWaiting(StageFailure):
    """The command waits for a vendor's batch, see `halos_eval.orchestration.waiting`."""

    @property
    def until(self) -> datetime | None:
        """The UTC time that the command named for its next run; None if its last log line has none."""
        found = AGAIN.search(str(self))
        return datetime.fromisoformat(found[1]) if found else None


# Airflow applies these rules in the task's process, to the exception itself. Retries and delays are the task's.
RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        # The operator itself raises BadInput, for example if somebody broke the cluster file after the plan was made.
        RetryRule(exception=[Final, errors.BadInput], action=RetryAction.FAIL, reason="the same would happen again"),
        # Infrastructure: a process on this machine has no operator that starts it again.
        RetryRule(exception=[StageInterrupted, Infrastructure], reason="finished work is kept"),
    ]
)


def failure(exit_code: int, words: str, log: str = "") -> StageFailure:
    """Return the failure for a command's exit code (negative: the signal that ended it).

    :param words: the line that explains it.
    :param log: the end of the log, in which a fault of a GPU is looked for.
    """
    if (exit_code in GPU_CODES or not 0 <= exit_code <= 128) and (line := gpu_fault(log)):
        return GpuFault(f"{line} (exit code {exit_code}; last log line: {words})")
    if exit_code < 0:
        return StageInterrupted(f"killed by signal {-exit_code}; last log line: {words}")
    classes = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)]
    known = {error.exit_code: error for error in classes if issubclass(error, errors.HalosEvalError)}
    if kind := known.get(exit_code):
        later = StageWaiting if kind is errors.Waiting else StageInterrupted
        return (later if kind.retryable else StageFailed)(words or f"{kind.__name__} without a message")
    if exit_code > 128:
        return StageInterrupted(f"killed by signal {exit_code - 128}; last log line: {words}")
    return StageInterrupted(f"ended with exit code {exit_code}; last log line: {words}")


def refused(error: ApiException) -> StageFailure:
    """Return the failure for an error of Kubernetes: about a new pod, or because the server itself has a problem."""
    message = f"Kubernetes rejected the pod ({error.status} {error.reason}): {error.body}"
    if error.status == HTTPStatus.FORBIDDEN and "exceeded quota" in str(error.body):
        return QuotaExceeded(message)
    if error.status in PERMANENT:
        return PodRefused(f"{message}. Check the Role, the namespace and the profile in the cluster file")
    return ApiUnavailable(f"Kubernetes did not answer as expected ({error.status} {error.reason}): {error.body}")


def diagnose(pod: V1Pod, log: str = "") -> StageFailure:
    """Return why ``pod`` did not succeed, from its status and the end of its log.

    The status has 2 kB of the log, which may not reach back to the reason.
    """
    status, name, state = pod.status, pod.metadata.name, _state(pod)
    # A cancelled disruption leaves its condition behind, with the status False.
    reasons = {one.reason for one in _conditions(pod, "DisruptionTarget", "True")} | {status.reason}
    disruption = f"{name}: {', '.join(sorted(filter(None, reasons)))} {status.message or ''}".strip()
    line = last_log_line(log or state.terminated.message) if state and state.terminated else ""
    last = f". Last log line: {line}" if line else ""
    if reasons & LOST_NODE:
        return NodeLost(disruption + last)
    if reasons & DISRUPTED:
        return Evicted(disruption + last)
    if status.reason == "DeadlineExceeded":
        return RunTimeout(
            f"{name} ran longer than runTimeoutSeconds of its profile ({status.message}). Raise it, or use a larger "
            f"profile{last}"
        )
    if state and state.terminated:
        return _ended(pod, state.terminated, log or state.terminated.message or "")
    if pod.metadata.deletion_timestamp:
        return PodLost(f"{name} was deleted before it ended")
    return _never_ran(pod)


def _conditions(pod: V1Pod, kind: str, status: str) -> list[V1PodCondition]:
    return [one for one in pod.status.conditions or () if (one.type, one.status) == (kind, status)]


def _state(pod: V1Pod, container: str = BASE) -> V1ContainerState | None:
    return next((one.state for one in pod.status.container_statuses or () if one.name == container), None)


def _ended(pod: V1Pod, end: Any, log: str) -> StageFailure:
    line = last_log_line(log)
    if end.reason == OOM:
        return OutOfMemory(
            f"{pod.metadata.name} ran out of memory. Raise memory in its profile (/dev/shm counts), or lower "
            f"max_model_len. Last log line: {line}"
        )
    # Kubernetes kills all of a container, so the server leaves no note, and the stage knows only that it is gone.
    server = _state(pod, SERVER)
    if end.exit_code and server and server.terminated and server.terminated.reason == OOM:
        return OutOfMemory(
            f"the container {SERVER} of {pod.metadata.name} ran out of memory. Raise memory in the judge's profile "
            f"(/dev/shm counts), or lower the judge's max_model_len. Last log line: {line}"
        )
    if pod.metadata.deletion_timestamp and end.exit_code in {128 + signal.SIGTERM, 128 + signal.SIGKILL}:
        return PodLost(f"{pod.metadata.name} was deleted while it ran. Last log line: {line}")
    return failure(end.exit_code, line, log)


def _never_ran(pod: V1Pod) -> StageFailure:
    name, status = pod.metadata.name, pod.status
    # A judge that is served has two containers, and the pod is pending until both run.
    states = [one.state for one in status.container_statuses or () if one.state]
    waiting = next((state.waiting for state in states if state.waiting), None)
    reason = f"{name}: {waiting.reason}: {waiting.message}." if waiting else ""
    if waiting and (waiting.reason in IMAGE_REASONS or (waiting.reason in PULL_REASONS and _rejected(waiting.message))):
        return ImageUnavailable(f"{reason} Check images and imagePullSecrets in the cluster file")
    if waiting and waiting.reason in PULL_REASONS:
        return ImageNotPulled(f"{reason} Check that the node reaches the registry")
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


def _rejected(message: str | None) -> bool:
    return bool(NO_IMAGE.search(message or ""))


def last_log_line(log: str | None) -> str:
    """Return the line at the end of a log that best explains the failure."""
    return last_error(log or "")
