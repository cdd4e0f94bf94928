"""The failure for each pod status and exit code, and whether Airflow retries it."""

from __future__ import annotations

import re
import signal
from datetime import UTC, datetime

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException
from hypothesis import example, given
from hypothesis import strategies as st
from kubernetes.client import (
    ApiException,
    V1ContainerState,
    V1ContainerStateRunning,
    V1ContainerStateTerminated,
    V1ContainerStateWaiting,
    V1ContainerStatus,
    V1ObjectMeta,
    V1Pod,
    V1PodCondition,
    V1PodStatus,
)

from halos_eval.checkpoints.registry import NotRegistered
from halos_eval.errors import BadInput, StoreError, Waiting
from halos_eval.orchestration import failures
from halos_eval.orchestration.failures import (
    RETRY_POLICY,
    ApiUnavailable,
    Evicted,
    Final,
    GpuFault,
    ImageNotPulled,
    ImageUnavailable,
    Infrastructure,
    NodeLost,
    OutOfMemory,
    PodLost,
    PodRefused,
    QuotaExceeded,
    RunTimeout,
    StageFailed,
    StageFailure,
    StageInterrupted,
    StageWaiting,
    StartTimeout,
    Unschedulable,
    diagnose,
    failure,
    last_log_line,
    refused,
)
from tests.cli.test_main import CLASSES

KINDS = [one for one in vars(failures).values() if isinstance(one, type) and issubclass(one, StageFailure)]
LOG = "12:00 INFO loading\n\nhalos-eval: Incomplete: 3 of 12 prompts have no answer\n  \n"
WORDS = "halos-eval: Incomplete: 3 of 12 prompts have no answer"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def make_pod(state=None, deleted=False, conditions=None, **status):
    """Return a pod as Kubernetes does; ``state`` is the state of the container that runs the stage."""
    metadata = V1ObjectMeta(name="halos-eval-sample-x1", deletion_timestamp=NOW if deleted else None)
    statuses = None
    if state is not None:
        ready = {"image": "i", "image_id": "i", "ready": False, "restart_count": 0}
        other = V1ContainerState(terminated=V1ContainerStateTerminated(exit_code=0, message="the sidecar"))
        statuses = [
            V1ContainerStatus(name="sidecar", state=other, **ready),
            V1ContainerStatus(name="base", state=state, **ready),
        ]
    return V1Pod(metadata=metadata, status=V1PodStatus(container_statuses=statuses, conditions=conditions, **status))


def ended(exit_code, reason="Error", message=LOG):
    end = V1ContainerStateTerminated(exit_code=exit_code, reason=reason, message=message)
    return V1ContainerState(terminated=end)


def waiting(reason, message="the kubelet's words"):
    return V1ContainerState(waiting=V1ContainerStateWaiting(reason=reason, message=message))


def running():
    return V1ContainerState(running=V1ContainerStateRunning(started_at=NOW))


def condition(kind, status, reason, message="the condition's words"):
    return V1PodCondition(type=kind, status=status, reason=reason, message=message)


def disruption(reason, status="True"):
    return [condition("DisruptionTarget", status, reason), condition("Ready", "False", "PodFailed")]


def decision_on(error):
    """Return what Airflow does after ``error``."""
    return RETRY_POLICY.evaluate(error, try_number=1, max_tries=4)


def test_the_tree_of_failures_is_that_of_the_classes():
    parents, drawn = [StageFailure], {}
    for line in failures.__doc__.split("StageFailure\n")[1].split("\n\n")[0].splitlines():
        depth = re.search(r"[├└]", line).start() // 4
        name, words = re.search(r"── (\w+) +(\S.*)", line).groups()
        parents[depth:] = [getattr(failures, name)]
        drawn[parents[-1]] = (parents[-2] if depth > 1 else StageFailure, words)
    assert {kind: parent for kind, (parent, _) in drawn.items()} == {
        kind: kind.__bases__[0] for kind in KINDS if kind is not StageFailure
    }
    assert all(kind.__doc__ for kind in KINDS)
    assert drawn[Final][1].startswith("not retried")
    assert drawn[Infrastructure][1].startswith("a new pod starts in the same try")
    assert drawn[StageInterrupted][1].startswith("retried with back-off")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, Final)])
def test_final_failures_are_not_retried(kind):
    assert decision_on(kind("words")).action is RetryAction.FAIL


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, Infrastructure | StageInterrupted)])
def test_the_rest_is_retried_with_the_delay_of_the_task(kind):
    decision = decision_on(kind("words"))
    assert decision.action is RetryAction.RETRY
    assert decision.retry_delay is None


def test_bad_input_that_the_operator_finds_itself_is_not_retried():
    """For example, a profile that was removed from the cluster file after the plan was made."""
    for error in (BadInput("x"), NotRegistered("x")):
        assert decision_on(error).action is RetryAction.FAIL


@pytest.mark.parametrize("error", [AirflowException("x"), StoreError("x"), ApiException(500), OSError("x")])
def test_anything_else_is_left_to_the_tasks_retries(error):
    assert decision_on(error).action is RetryAction.DEFAULT


def test_the_rules_survive_serialization():
    policy = type(RETRY_POLICY).deserialize(RETRY_POLICY.serialize())
    for kind in KINDS:
        found = policy.evaluate(kind("words"), try_number=1, max_tries=4)
        assert found == decision_on(kind("words"))


# Exit codes


def failure_of(kind):
    return StageWaiting if kind is Waiting else StageInterrupted if kind.retryable else StageFailed


def test_a_stage_that_waits_names_the_time_of_its_next_run():
    words = "halos-eval: Waiting: 5 wait (again after 2031-01-01T00:00:00Z). Run it again after 2026-11-28T01:02:03Z"
    assert failure(Waiting.exit_code, words).until == datetime(2026, 11, 28, 1, 2, 3, tzinfo=UTC)
    assert failure(Waiting.exit_code, "killed").until is None
    assert failure(Waiting.exit_code, f"{words} and more").until is None


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_exit_code_of_ours_is_retried_or_not(kind):
    found = failure(kind.exit_code, "the reason")
    assert type(found) is failure_of(kind)
    assert str(found) == "the reason"
    assert kind.__name__ in str(failure(kind.exit_code, ""))


def test_the_errors_that_are_retried():
    retried = {kind.__name__ for kind in CLASSES if isinstance(failure(kind.exit_code, ""), StageInterrupted)}
    assert retried == {"Incomplete", "StoreError"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (99, "ended with exit code 99"),
        (125, "ended with exit code 125"),
        (127, "ended with exit code 127"),
        (130, "killed by signal 2"),
        (137, "killed by signal 9"),
        (143, "killed by signal 15"),
    ],
)
def test_a_killed_stage_is_retried(code, words):
    found = failure(code, "sampled 3 of 12 prompts")
    assert type(found) is StageInterrupted
    assert str(found) == f"{words}; last log line: sampled 3 of 12 prompts"


@pytest.mark.parametrize("number", sorted(signal.valid_signals()))
def test_a_process_ended_by_a_signal_is_retried(number):
    found = failure(-number, "sampled 3 of 12 prompts")
    assert type(found) is StageInterrupted
    assert str(found) == f"killed by signal {int(number)}; last log line: sampled 3 of 12 prompts"


# Pods


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_pod_that_ends_with_one_of_our_exit_codes(kind):
    found = diagnose(make_pod(ended(kind.exit_code), phase="Failed"))
    assert type(found) is failure_of(kind)
    assert str(found) == WORDS


@pytest.mark.parametrize("code", [137, 1, 0])
def test_out_of_memory(code):
    found = diagnose(make_pod(ended(code, "OOMKilled"), phase="Failed"))
    assert type(found) is OutOfMemory
    assert "Raise memory in its profile" in str(found)
    assert str(found).endswith(WORDS)


def served(base, server):
    """Return the pod of a judge with its server."""
    pod = make_pod(base, phase="Failed")
    pod.status.container_statuses[0].name = "server"
    pod.status.container_statuses[0].state = server
    return pod


@pytest.mark.parametrize("code", [5, 7])
def test_a_judges_server_that_runs_out_of_memory(code):
    """The stage itself only knows that its server is gone, which is retried."""
    found = diagnose(served(ended(code), ended(137, "OOMKilled", message="loading")))
    assert type(found) is OutOfMemory
    assert str(found).startswith("the container server of halos-eval-sample-x1 ran out of memory. Raise memory")
    assert str(found).endswith(WORDS)


@pytest.mark.parametrize("server", [ended(137), ended(0, "Completed"), running(), waiting("ContainerCreating"), None])
def test_a_judges_server_that_ended_for_another_reason_leaves_the_failure_to_the_judge(server):
    assert str(diagnose(served(ended(5), server))) == WORDS


def test_a_judge_that_succeeded_does_not_fail_because_of_its_server():
    """Its next try finds the record."""
    assert type(diagnose(served(ended(0, "Completed"), ended(137, "OOMKilled")))) is StageInterrupted


def test_a_kill_that_was_not_for_memory_is_retried():
    found = diagnose(make_pod(ended(137), phase="Failed"))
    assert type(found) is StageInterrupted
    assert str(found) == f"killed by signal 9; last log line: {WORDS}"


def test_sigterm_without_a_deletion_is_retried():
    assert type(diagnose(make_pod(ended(143), phase="Failed"))) is StageInterrupted


def test_evicted_by_the_kubelet():
    pod = make_pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    found = diagnose(pod)
    assert type(found) is Evicted
    assert str(found) == "halos-eval-sample-x1: Evicted The node was low on resource: memory."


def test_evicted_while_it_ran_names_the_last_log_line():
    pod = make_pod(ended(137), conditions=disruption("TerminationByKubelet"), phase="Failed", reason="Evicted")
    assert type(diagnose(pod)) is Evicted
    assert str(diagnose(pod)).endswith(WORDS)


@pytest.mark.parametrize("code", [143, 137, 0, 5])
@pytest.mark.parametrize("reason", ["PreemptionByScheduler", "EvictionByEvictionAPI"])
def test_preempted_or_drained(reason, code):
    pod = make_pod(ended(code), deleted=True, conditions=disruption(reason), phase="Failed")
    found = diagnose(pod)
    assert type(found) is Evicted
    assert reason in str(found)
    assert WORDS in str(found)


def test_a_cancelled_eviction_is_not_the_reason():
    pod = make_pod(ended(137, "OOMKilled"), conditions=disruption("EvictionByEvictionAPI", "False"), phase="Failed")
    assert type(diagnose(pod)) is OutOfMemory


@pytest.mark.parametrize("reason", ["DeletionByTaintManager", "DeletionByPodGC"])
def test_a_lost_node_by_condition(reason):
    found = diagnose(make_pod(running(), deleted=True, conditions=disruption(reason), phase="Failed"))
    assert type(found) is NodeLost
    assert reason in str(found)


@pytest.mark.parametrize("reason", ["NodeLost", "NodeShutdown", "Terminated", "Shutdown"])
def test_a_lost_node_by_reason(reason):
    pod = make_pod(ended(143), conditions=disruption("TerminationByKubelet"), phase="Failed", reason=reason)
    assert type(diagnose(pod)) is NodeLost
    assert WORDS in str(diagnose(pod))


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ErrImagePull", 'failed to resolve reference "r.example.org/worker:2": r.example.org/worker:2: not found'),
        ("ErrImagePull", "reading manifest 2 in r.example.org/worker: manifest unknown"),
        ("ImagePullBackOff", 'Back-off pulling image "r": ErrImagePull: unexpected status: 401 Unauthorized'),
        ("ErrImagePull", "pull access denied, repository does not exist or may require authorization"),
        ("InvalidImageName", "couldn't parse image name"),
        ("ErrImageNeverPull", "is not present with pull policy of Never"),
        ("ImageInspectError", "failed to inspect"),
    ],
)
def test_an_image_that_does_not_exist_is_final(reason, message):
    found = diagnose(make_pod(waiting(reason, message), phase="Pending"))
    assert type(found) is ImageUnavailable
    assert f"{reason}: {message}" in str(found)
    assert "images and imagePullSecrets in the cluster file" in str(found)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ErrImagePull", "failed to do request: dial tcp: lookup r.example.org on 10.96.0.10:53: no such host"),
        ("ErrImagePull", "dial tcp 10.1.2.3:443: i/o timeout"),
        ("ErrImagePull", "unexpected status from HEAD request: 503 Service Unavailable"),
        ("ErrImagePull", "toomanyrequests: You have reached your pull rate limit"),
        ("ImagePullBackOff", 'Back-off pulling image "r.example.org/worker:1"'),
    ],
)
def test_a_registry_that_does_not_answer_is_the_infrastructure(reason, message):
    found = diagnose(make_pod(waiting(reason, message), phase="Pending"))
    assert type(found) is ImageNotPulled
    assert message in str(found)
    assert "Check that the node reaches the registry" in str(found)


def test_an_image_of_a_judges_server_that_cannot_be_pulled():
    pod = make_pod(running(), phase="Pending")
    pod.status.container_statuses[0].state = waiting("ErrImagePull", "manifest unknown")
    assert type(diagnose(pod)) is ImageUnavailable


def test_a_secret_that_is_missing():
    found = diagnose(make_pod(waiting("CreateContainerConfigError", 'secret "judge" not found'), phase="Pending"))
    assert type(found) is PodRefused
    assert 'secret "judge" not found' in str(found)


@pytest.mark.parametrize("reason", ["CreateContainerError", "RunContainerError"])
def test_a_container_that_cannot_be_made(reason):
    assert type(diagnose(make_pod(waiting(reason), phase="Pending"))) is PodRefused


@pytest.mark.parametrize("reason", ["Unschedulable", "SchedulingGated"])
def test_no_node(reason):
    words = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    found = diagnose(make_pod(conditions=[condition("PodScheduled", "False", reason, words)], phase="Pending"))
    assert type(found) is Unschedulable
    assert words in str(found)


@pytest.mark.parametrize("reason", ["UnexpectedAdmissionError", "OutOfcpu", "NodeAffinity"])
def test_a_node_that_rejects_the_pod(reason):
    words = "Allocate failed due to requested number of devices unavailable for nvidia.com/gpu"
    scheduled = [condition("PodScheduled", "True", None)]
    found = diagnose(make_pod(conditions=scheduled, phase="Failed", reason=reason, message=words))
    assert type(found) is Unschedulable
    assert f"{reason}: {words}" in str(found)


@pytest.mark.parametrize(
    ("state", "words"), [(waiting("ContainerCreating"), "ContainerCreating"), (None, "Pending"), (running(), "Pending")]
)
def test_a_container_that_does_not_start_in_time(state, words):
    found = diagnose(make_pod(state, conditions=[condition("PodScheduled", "True", None)], phase="Pending"))
    assert type(found) is StartTimeout
    assert str(found).endswith(words)


def test_a_pod_that_runs_too_long():
    words = "Pod was active on the node longer than the specified deadline"
    found = diagnose(make_pod(ended(137), phase="Failed", reason="DeadlineExceeded", message=words))
    assert type(found) is RunTimeout
    assert words in str(found)
    assert str(found).endswith(WORDS)


@pytest.mark.parametrize("code", [137, 143])
def test_deleted_while_it_ran(code):
    found = diagnose(make_pod(ended(code), deleted=True, phase="Failed"))
    assert type(found) is PodLost
    assert str(found).endswith(WORDS)


def test_a_pod_that_is_deleted_after_its_end_keeps_its_failure():
    assert type(diagnose(make_pod(ended(2), deleted=True, phase="Failed"))) is StageFailed


@pytest.mark.parametrize("state", [None, waiting("ContainerCreating"), running()])
def test_deleted_before_it_ended(state):
    assert type(diagnose(make_pod(state, deleted=True, phase="Pending"))) is PodLost


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (None, ""),
        ("", ""),
        ("\n \n", ""),
        ("one", "one"),
        (LOG, WORDS),
        ("halos-eval: BadInput: é\r\n", "halos-eval: BadInput: é"),
    ],
)
def test_last_log_line(log, words):
    assert last_log_line(log) == words


def test_a_pod_without_a_log_has_a_reason():
    assert str(diagnose(make_pod(ended(2, message=None), phase="Failed"))) == "BadInput without a message"


text = st.none() | st.text(max_size=30) | st.just(LOG)
reasons = st.sampled_from(
    [None, "", "Evicted", "NodeLost", "DeadlineExceeded", "OOMKilled", "Error", "Completed", "ImagePullBackOff",
     "CreateContainerConfigError", "ContainerCreating", "PreemptionByScheduler", "DeletionByPodGC", "é\n"]
)  # fmt: skip
states = st.none() | st.builds(
    V1ContainerState,
    terminated=st.none()
    | st.builds(V1ContainerStateTerminated, exit_code=st.integers(0, 255), reason=reasons, message=text),
    waiting=st.none() | st.builds(V1ContainerStateWaiting, reason=reasons, message=text),
    running=st.none() | st.builds(V1ContainerStateRunning),
)
statuses = st.builds(
    V1ContainerStatus,
    name=st.sampled_from(["base", "other"]),
    state=states,
    image=st.just("i"),
    image_id=st.just("i"),
    ready=st.booleans(),
    restart_count=st.just(0),
)
conditions = st.builds(
    V1PodCondition,
    type=st.sampled_from(["DisruptionTarget", "PodScheduled", "Ready"]),
    status=st.sampled_from(["True", "False", "Unknown"]),
    reason=reasons,
    message=text,
)
pods = st.builds(
    V1Pod,
    metadata=st.builds(V1ObjectMeta, name=st.just("x"), deletion_timestamp=st.none() | st.just(NOW)),
    status=st.builds(
        V1PodStatus,
        phase=st.sampled_from([None, "Pending", "Running", "Failed", "Unknown"]),
        reason=reasons,
        message=text,
        conditions=st.none() | st.lists(conditions, max_size=3),
        container_statuses=st.none() | st.lists(statuses, max_size=2),
    ),
)


@given(pod=pods)
@example(pod=V1Pod(metadata=V1ObjectMeta(name="x"), status=V1PodStatus()))
def test_every_pod_has_a_failure_with_its_last_log_line(pod):
    found = diagnose(pod)
    assert type(found) in KINDS
    assert type(found) not in {StageFailure, Final, Infrastructure}
    assert str(found)
    base = next((one for one in pod.status.container_statuses or () if one.name == "base"), None)
    if base and base.state and base.state.terminated:
        assert last_log_line(base.state.terminated.message) in str(found)


# Errors of Kubernetes about a new pod


def api_error(status, body=""):
    error = ApiException(status=status, reason="the reason")
    error.body = body
    return error


def test_a_used_up_quota_is_retried():
    body = '{"message": "pods \\"x\\" is forbidden: exceeded quota: halos-eval, requested: requests.nvidia.com/gpu=2"}'
    found = refused(api_error(403, body))
    assert type(found) is QuotaExceeded
    assert "exceeded quota: halos-eval" in str(found)


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_a_pod_that_kubernetes_rejects_for_good(status):
    found = refused(api_error(status, '{"message": "serviceaccount \\"x\\" not found"}'))
    assert type(found) is PodRefused
    assert f"Kubernetes rejected the pod ({status} the reason)" in str(found)
    assert 'serviceaccount \\"x\\" not found' in str(found)


@pytest.mark.parametrize("status", [None, 0, 401, 409, 429, 500, 503, 504])
def test_a_problem_of_the_server_is_not_a_rejection(status):
    found = refused(api_error(status, "etcd"))
    assert type(found) is ApiUnavailable
    assert str(found).endswith("etcd")


# Faults of GPUs

ENGINE = """\
INFO 11-27 18:00:00 [core.py:58] Initializing a V1 LLM engine
(EngineCore pid=7) ERROR 11-27 18:00:09 [core.py:9] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-27 18:00:09 [core.py:9]   File "core.py", line 1, in run
(EngineCore pid=7) ERROR 11-27 18:00:09 [core.py:9] {error}
Traceback (most recent call last):
  File "llm.py", line 1, in generate
vllm.v1.engine.exceptions.EngineDeadError: See stack trace (above) for the root cause.
halos-eval: EvaluationFailed: EngineDeadError: See stack trace (above) for the root cause.
"""
FAULTS = [
    "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
    "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered",
    "torch.AcceleratorError: CUDA error: unspecified launch failure",
    "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment",
    "RuntimeError: No CUDA GPUs are available",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error",
    "RuntimeError: NCCL communicator timed out",
    "RuntimeError: ncclRemoteError: A call failed possibly due to a network error",
]
OTHERS = [
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
    "RuntimeError: CUDA error: out of memory",
    "torch.AcceleratorError: CUDA error: device-side assert triggered",
    "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
    "ValueError: unknown rope type",
]


@pytest.mark.parametrize("error", FAULTS)
def test_a_fault_of_a_gpu_is_the_infrastructure(error):
    found = diagnose(make_pod(ended(7, message="the end"), phase="Failed"), ENGINE.format(error=error))
    assert type(found) is GpuFault
    assert error in str(found)


@pytest.mark.parametrize("error", OTHERS)
def test_what_the_evaluation_itself_can_cause_is_not(error):
    log = ENGINE.format(error=error)
    found = diagnose(make_pod(ended(7, message="the end"), phase="Failed"), log)
    assert type(found) is StageFailed
    assert str(found) == error  # from the log, of which the status has too little


def test_memory_that_is_used_up_on_one_gpu_is_not_a_fault_of_those_that_wait_for_it():
    log = ENGINE.format(error=OTHERS[0]) + FAULTS[5]
    assert type(diagnose(make_pod(ended(7), phase="Failed"), log)) is StageFailed


@pytest.mark.parametrize(("code", "kind"), [(134, GpuFault), (1, GpuFault), (2, StageFailed), (5, StageInterrupted)])
def test_only_what_a_fault_can_cause_is_attributed_to_it(code, kind):
    assert type(diagnose(make_pod(ended(code), phase="Failed"), ENGINE.format(error=FAULTS[0]))) is kind


def test_a_process_without_a_pod_is_diagnosed_by_its_log():
    assert type(failure(7, "words", ENGINE.format(error=FAULTS[0]))) is GpuFault
    assert type(failure(-6, "words", ENGINE.format(error=FAULTS[0]))) is GpuFault
    assert type(failure(-6, "words", "words")) is StageInterrupted
