"""The operator of a stage's pod with a double of Kubernetes: the pods that it starts, awaits, reports and deletes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import kubernetes_validate
import pytest
import yaml
from airflow.sdk.exceptions import AirflowException, AirflowRescheduleException, TaskDeferred
from kubernetes.client import ApiClient, ApiException, CoreV1EventList, V1Container, V1PodList, V1PodSpec

from halos_eval.config.cluster import load_cluster
from halos_eval.errors import BadInput
from halos_eval.orchestration import queues
from halos_eval.orchestration.failures import (
    ApiUnavailable,
    Evicted,
    ImageNotPulled,
    ImageUnavailable,
    Infrastructure,
    InfrastructureFailed,
    OutOfMemory,
    PodLost,
    PodRefused,
    QueueRejected,
    QuotaExceeded,
    StageFailed,
    StageFailure,
    StageInterrupted,
    StartTimeout,
    Unschedulable,
)
from halos_eval.orchestration.pod_spec import manifest
from halos_eval.orchestration.pod_trigger import UNREACHABLE, StagePodTrigger
from halos_eval.orchestration.pods import PodStageOperator
from halos_eval.planning.interrupted import Note
from halos_eval.storage.records import write_model
from tests.doubles import make_record
from tests.orchestration.test_failures import WORDS, condition, disruption, ended, make_pod, running, waiting
from tests.orchestration.test_pod_spec import KUBERNETES, PROFILE, VERSION, make_job

CLUSTER = {
    "pools": {"gpu": 8, "judge": 1},
    "profiles": {
        "default": PROFILE | {"scheduleTimeoutSeconds": 111, "startTimeoutSeconds": 22},
        "cpu": {"scheduleTimeoutSeconds": 333, "startTimeoutSeconds": 44},
    },
    "kubernetes": KUBERNETES,
}
POD = "halos-eval-sample-x1"
QUOTA = '{"message": "pods \\"x\\" is forbidden: exceeded quota: gpus"}'


class Kubernetes:
    """Double of CoreV1Api with the calls that the operator makes, on one pod that a test sets."""

    def __init__(self):
        self.api_client = ApiClient()
        self.created, self.deleted, self.labels = [], [], {}
        self.pod, self.refusal, self.log = None, None, ""
        self.calls = []

    def put(self, pod):
        """Set the pod, with the fields that every pod has."""
        pod.metadata.namespace = "halos"
        pod.metadata.labels = {"try_number": "1"}
        pod.metadata.creation_timestamp = datetime.now(UTC) - timedelta(days=1)
        pod.spec = V1PodSpec(containers=[V1Container(name="base")])
        self.pod = pod
        return pod

    def create_namespaced_pod(self, body, namespace):
        self.calls.append("create")
        if self.refusal:
            raise self.refusal
        self.created.append(body)
        return self.put(make_pod(phase="Pending"))

    def read_namespaced_pod(self, name, namespace):
        assert namespace == "halos"
        if self.pod is None or name != self.pod.metadata.name:
            raise ApiException(status=404, reason="Not Found")
        return self.pod

    def list_namespaced_pod(self, namespace, label_selector):
        self.selector = label_selector
        return V1PodList(items=[self.pod] if self.pod else [])

    def delete_namespaced_pod(self, name, namespace, **options):
        self.deleted.append((name, options.get("grace_period_seconds")))
        self.pod = None

    def patch_namespaced_pod(self, name, namespace, body):
        self.labels |= body["metadata"]["labels"]

    def read_namespaced_pod_log(self, **options):
        assert options["_preload_content"] is False
        lines = ["the log's first line", WORDS]
        if "tail_lines" in options:
            return SimpleNamespace(data=(self.log or "\n".join(lines)).encode())
        return [f"{line}\n".encode() for line in lines]

    def list_namespaced_event(self, **options):
        return CoreV1EventList(items=[])


@pytest.fixture
def kubernetes(tmp_path, monkeypatch):
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", "kubernetes://")
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))  # no wait between calls
    kubernetes = Kubernetes()
    hook = SimpleNamespace(
        core_v1_client=kubernetes, get_pod=kubernetes.read_namespaced_pod, is_in_cluster=True, get_namespace=None
    )
    monkeypatch.setattr(PodStageOperator, "hook", hook)
    return kubernetes


@pytest.fixture
def without_budget(kubernetes, tmp_path):
    """A cluster file whose profiles start no pod again."""
    profiles = {name: one | {"infrastructureBudgetSeconds": 0} for name, one in CLUSTER["profiles"].items()}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER | {"profiles": profiles}))


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """``stored()`` returns the notes that the store has on the evaluation."""
    monkeypatch.setattr("halos_eval.orchestration.pods.requested_name", lambda params: params["checkpoint"])
    monkeypatch.setenv("HALOS_EVAL_STORE", f"file://{tmp_path}/store")
    folder = tmp_path / "store" / "interrupted" / "own" / "a"
    return lambda: [Note.model_validate_json(path.read_text()) for path in folder.glob("*.json")]


@pytest.fixture
def context():
    """The context of a task; ``pushed`` has its XComs."""
    pushed = {}
    instance = SimpleNamespace(
        dag_id="evaluate_checkpoint",
        task_id="sample",
        map_index=0,
        try_number=1,
        start_date=datetime.now(tz=UTC),
        xcom_push=lambda key, value: pushed.update({key: value}),
    )
    return {
        "ti": instance,
        "run_id": "manual__2026-01-02",
        "dag": SimpleNamespace(),
        "params": {"priority": "nightly", "checkpoint": "a", "suite": "own", "tasks": []},
        "pushed": pushed,
    }


def operator(job=None):
    return PodStageOperator(task_id="sample", job=(job or make_job()).model_dump(mode="json"))


def deferral(context, job=None):
    """Start the pod of ``job``, and return the deferral of the task."""
    with pytest.raises(TaskDeferred) as caught:
        operator(job).execute(context)
    return caught.value


def come_back(context, status, message="the trigger's words", job=None, **event):
    """Resume the task with an event of the triggerer."""
    event = {"status": status, "name": POD, "namespace": "halos", "message": message, **event}
    return operator(job).trigger_reentry(context, event)


# Starting


@pytest.mark.parametrize("job", [{}, None])
def test_nothing_to_do(job, context, monkeypatch, tmp_path):
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "none"))  # must not be read
    assert PodStageOperator(task_id="one", job=job).execute(context) is None
    assert context["pushed"] == {}


def test_answers_are_not_scored_again_if_the_store_has_the_record(kubernetes, context, tmp_path):
    """The pod could not know: it does not reach the store, and the answers are no longer in the outbox."""
    job = make_job("harness", task="humaneval", argv=("score",), outbox="runs/x", unless=f"{tmp_path}/record.json")
    deferral(context, job)
    assert len(kubernetes.created) == 1
    write_model(job.unless, make_record("harness", "humaneval"))
    assert operator(job).execute(context) is None
    assert len(kubernetes.created) == 1


def test_a_pod_is_started_and_awaited_without_a_worker(kubernetes, context):
    found = deferral(context)
    trigger = found.trigger
    assert isinstance(trigger, StagePodTrigger)
    assert found.method_name == "trigger_reentry"
    assert found.timeout is None
    assert (trigger.pod_name, trigger.pod_namespace) == (context["pushed"]["pod_name"], "halos")
    assert (trigger.schedule_timeout, trigger.startup_timeout) == (111, 22)
    assert (trigger.poll_interval, trigger.logging_interval, trigger.get_logs) == (5, 30, True)
    assert trigger.base_container_name == "base"
    assert trigger.on_finish_action == trigger.on_kill_action == "delete_pod"
    [pod] = kubernetes.created
    assert pod["metadata"]["name"] == trigger.pod_name
    json.dumps(trigger.serialize()[1], default=str)


@pytest.mark.parametrize("in_cluster", [True, False])
def test_the_triggerer_connects_as_the_task_did(kubernetes, context, monkeypatch, in_cluster):
    monkeypatch.setattr(PodStageOperator.hook, "is_in_cluster", in_cluster)
    assert deferral(context).trigger.in_cluster is in_cluster


def test_each_profile_has_its_own_timeouts(kubernetes, context):
    trigger = deferral(context, make_job("judge", profile="cpu")).trigger
    assert (trigger.schedule_timeout, trigger.startup_timeout) == (333, 44)


def test_the_pod_is_that_of_the_manifest(kubernetes, context):
    """The operator adds labels and a random suffix to the name. It overrides nothing."""
    job = make_job("harness", argv=("harness", "{{ 1 + 1 }}", "a b"))
    deferral(context, job)
    [pod] = kubernetes.created
    kubernetes_validate.validate(pod, VERSION, strict=True)
    cluster = load_cluster()
    written = manifest(job, cluster.kubernetes, cluster.profiles["default"], "nightly")
    owner = "--owner=task sample 0 of manual__2026-01-02"
    assert container(pod)["args"] == ["harness", owner, "{{ 1 + 1 }}", "a b"]  # nothing was rendered
    assert pod["metadata"]["name"].startswith(f"{written['metadata']['name']}-")
    assert len(pod["metadata"]["name"]) <= 63
    assert written["metadata"]["labels"].items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["labels"]["halos-eval/priority"] == "nightly"
    assert pod["spec"].pop("terminationGracePeriodSeconds") == 60
    assert pod["spec"].pop("hostNetwork") is False
    container(pod)["args"].remove(owner)
    assert empty_dropped(pod["spec"]) == empty_dropped(written["spec"])


def container(pod):
    [only] = pod["spec"]["containers"]
    return only


def empty_dropped(value):
    """Return ``value`` without empty values, because the client library writes empty lists."""
    if isinstance(value, dict):
        return {key: empty_dropped(one) for key, one in value.items() if one not in (None, [], {})}
    return [empty_dropped(one) for one in value] if isinstance(value, list) else value


def test_nothing_secret_is_rendered_or_logged(kubernetes, context, capsys, monkeypatch):
    for name in KUBERNETES["secrets"]:
        monkeypatch.setenv(name, "sk-never")
    task = operator(make_job("judge", profile="cpu"))
    with pytest.raises(TaskDeferred) as caught:
        task.execute(context)
    assert task.template_fields == ("job",)  # Airflow stores and shows nothing else of the task
    shown = json.dumps(task.job)
    assert not {name for name in KUBERNETES["secrets"] if name in shown}
    trigger = caught.value.trigger.serialize()
    assert "sk-never" not in f"{kubernetes.created} {capsys.readouterr()} {context['pushed']} {trigger} {shown}"


@pytest.mark.parametrize("state", [None, waiting("ContainerCreating"), running()])
def test_a_pod_that_is_there_is_found_again(kubernetes, context, state):
    """After a restart of the scheduler or worker."""
    kubernetes.put(make_pod(state, phase="Running"))
    assert deferral(context).trigger.pod_name == POD
    assert kubernetes.created == []
    for label in ("dag_id=evaluate_checkpoint", "task_id=sample", "map_index=0", "run_id=manual__2026-01-02"):
        assert label in kubernetes.selector
    assert "try_number" not in kubernetes.selector


@pytest.mark.parametrize("status", [{"phase": "Failed"}, {"phase": "Failed", "reason": "Evicted"}])
def test_after_a_failure_there_is_a_new_pod(kubernetes, context, status):
    kubernetes.put(make_pod(ended(137), **status))
    deferral(context)
    assert [name for name, _ in kubernetes.deleted] == [POD]
    assert len(kubernetes.created) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind", "calls"),
    [
        (403, QUOTA, QuotaExceeded, 1),
        (403, "no such verb", PodRefused, 1),
        (422, "invalid", PodRefused, 1),
        (500, "etcd", ApiUnavailable, 5),  # the client library retries by itself
    ],
)
def test_a_pod_that_is_rejected(kubernetes, context, without_budget, status, body, kind, calls):
    kubernetes.refusal = ApiException(status=status, reason="r")
    kubernetes.refusal.body = body
    with pytest.raises(AirflowException) as caught:
        operator().execute(context)
    assert kind.__name__ in str(caught.value) if issubclass(kind, Infrastructure) else type(caught.value) is kind
    assert body in str(caught.value)
    assert kubernetes.calls == ["create"] * calls


def test_a_cluster_that_was_removed_from_the_file(kubernetes, context, tmp_path):
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER | {"kubernetes": None}))
    with pytest.raises(AirflowException, match="the cluster file has no key kubernetes"):
        operator().execute(context)


def test_a_profile_that_was_removed_from_the_file(kubernetes, context, tmp_path):
    with pytest.raises(BadInput, match="unknown profile 'gone'"):
        operator(make_job(profile="gone")).execute(context)
    assert kubernetes.created == []


# Resuming


def test_success(kubernetes, context):
    kubernetes.put(make_pod(ended(0, "Completed"), phase="Succeeded"))
    assert come_back(context, "success") is None
    assert [name for name, _ in kubernetes.deleted] == [POD]


def test_success_whose_pod_is_gone_already(kubernetes, context):
    assert come_back(context, "success") is None


@pytest.mark.parametrize(
    "changed",
    [
        {"profiles": {"default": {}, "cpu": {}, "other": {}}},
        {"profiles": {"default": {"gpus": 2}, "cpu": {}}, "pools": {"gpu": 1, "judge": 1}},
        {"kubernetes": None},
        {"unknown": 1},
    ],
)
def test_a_change_of_the_cluster_file_loses_no_pod_that_runs(kubernetes, context, tmp_path, changed):
    """`helm upgrade`, and a rollback: the pod is followed to its end, whatever the values are meanwhile."""
    profiles = CLUSTER["profiles"] | {"large": {"gpus": 4}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER | {"profiles": profiles}))
    job = make_job(profile="large")
    name = deferral(context, job).trigger.pod_name
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER | changed))
    pod = kubernetes.put(make_pod(running(), phase="Running"))
    with pytest.raises(TaskDeferred) as caught:
        come_back(context, "error", job=job)
    assert (caught.value.method_name, kubernetes.deleted) == ("trigger_reentry", [])
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER | changed))
    pod.status = make_pod(ended(0, "Completed"), phase="Succeeded").status
    assert come_back(context, "success", job=job) is None
    assert name == kubernetes.created[0]["metadata"]["name"]
    assert len(kubernetes.created) == 1


FAILED = {"phase": "Failed"}
PENDING = {"phase": "Pending"}
PREEMPTED = disruption("PreemptionByScheduler")
NO_NODE = condition("PodScheduled", "False", "Unschedulable", "Insufficient nvidia.com/gpu")


@pytest.mark.parametrize(
    ("event", "pod", "kind"),
    [
        ("failed", make_pod(ended(137, "OOMKilled"), **FAILED), OutOfMemory),
        ("failed", make_pod(ended(2), **FAILED), StageFailed),
        ("failed", make_pod(ended(5), **FAILED), StageInterrupted),
        ("failed", make_pod(ended(143), deleted=True, conditions=PREEMPTED, **FAILED), Evicted),
        ("failed", make_pod(ended(143), deleted=True, **FAILED), PodLost),
        ("timeout", make_pod(conditions=[NO_NODE], **PENDING), Unschedulable),
        ("timeout", make_pod(waiting("ContainerCreating"), **PENDING), StartTimeout),
        ("timeout", make_pod(waiting("CreateContainerConfigError"), **PENDING), PodRefused),
        ("error", make_pod(waiting("ErrImagePull", "manifest unknown"), **PENDING), ImageUnavailable),
        ("error", make_pod(waiting("ErrImagePull", "no such host"), **PENDING), ImageNotPulled),
        ("error", make_pod(ended(137, "OOMKilled"), **FAILED), OutOfMemory),
    ],
)  # fmt: skip
def test_every_failure_has_its_name_and_leaves_no_pod(kubernetes, context, without_budget, capsys, event, pod, kind):
    kubernetes.put(pod)
    with pytest.raises(StageFailure) as caught:
        come_back(context, event)
    if issubclass(kind, Infrastructure):
        assert type(caught.value) is InfrastructureFailed
        assert str(caught.value).startswith(f"{kind.__name__} 1 time in 0.0 hours")
    else:
        assert type(caught.value) is kind
    assert [name for name, _ in kubernetes.deleted] == [POD]
    assert kubernetes.labels == {"already_checked": "True"}  # the next try starts a new pod
    assert "the log's first line" in capsys.readouterr().out


def test_a_stage_that_waits_for_a_batch_is_rescheduled_and_then_gets_another_pod(kubernetes, context):
    soon = (datetime.now(UTC) + timedelta(minutes=20)).replace(microsecond=0)
    line = f"halos-eval: Waiting: 800 requests wait. Run the same command again after {soon:%Y-%m-%dT%H:%M:%SZ}\n"
    kubernetes.put(make_pod(ended(9, message=line), phase="Failed"))
    kubernetes.log = line
    job = make_job("judge", profile="cpu")
    with pytest.raises(AirflowRescheduleException) as caught:
        come_back(context, "failed", job=job)
    assert caught.value.reschedule_date == soon
    assert [name for name, _ in kubernetes.deleted] == [POD]  # no pod waits
    assert deferral(context, job).method_name == "trigger_reentry"
    assert len(kubernetes.created) == 1


def test_errors_of_the_trigger_with_a_running_pod_defer_again_however_many(kubernetes, context):
    kubernetes.put(make_pod(running(), phase="Running"))
    event = {}
    for _ in range(10):
        with pytest.raises(TaskDeferred) as caught:
            come_back(context, "error", **event)
        event = caught.value.trigger.trigger_kwargs
    assert (caught.value.trigger.schedule_timeout, caught.value.trigger.startup_timeout) == (111, 22)
    assert kubernetes.deleted == []


def scheduled_before(seconds):
    since = condition("PodScheduled", "True", None, None)
    since.last_transition_time = datetime.now(UTC) - timedelta(seconds=seconds)
    return [since]


@pytest.mark.parametrize("state", [running(), None])
def test_a_pod_that_got_its_node_after_the_trigger_gave_up_goes_on(kubernetes, context, state):
    late = make_pod(state, phase="Running") if state else make_pod(conditions=scheduled_before(2), **PENDING)
    kubernetes.put(late)
    with pytest.raises(TaskDeferred) as caught:
        come_back(context, "timeout")
    assert caught.value.trigger.startup_timeout <= 20
    assert kubernetes.deleted == []


@pytest.mark.parametrize("event", ["timeout", UNREACHABLE])
def test_a_pod_that_has_ended_after_the_trigger_gave_up_counts(kubernetes, context, event):
    kubernetes.put(make_pod(ended(0), phase="Succeeded"))
    assert come_back(context, event) is None
    assert [name for name, _ in kubernetes.deleted] == [POD]
    kubernetes.put(make_pod(ended(2), phase="Failed"))
    with pytest.raises(StageFailed):
        come_back(context, event)


def test_a_pod_that_disappears_while_it_is_looked_at_has_not_succeeded(kubernetes, context, monkeypatch):
    pods = iter([kubernetes.put(make_pod(ended(2), phase="Failed"))])
    kubernetes.pod = None

    def once(name, namespace):
        try:
            return next(pods)
        except StopIteration:
            raise ApiException(status=404) from None

    monkeypatch.setattr(PodStageOperator.hook, "get_pod", once)
    assert restart(context, "timeout").kwargs["restarts"]["counts"] == {"PodLost": 1}


def test_a_pod_that_does_not_start_in_its_time_is_replaced(kubernetes, context):
    kubernetes.put(make_pod(conditions=scheduled_before(23), **PENDING))
    assert restart(context, "timeout").kwargs["restarts"]["counts"] == {"StartTimeout": 1}
    assert [name for name, _ in kubernetes.deleted] == [POD]


def test_a_pod_on_a_node_that_does_not_answer_is_replaced_by_one_with_a_claim_of_its_own(kubernetes, context):
    kubernetes.put(make_pod(running(), phase="Running", deleted=True))
    deferred = restart(context, UNREACHABLE)
    assert kubernetes.deleted == [(POD, 0)]  # nothing else makes it disappear
    assert deferred.kwargs["restarts"]["counts"] == {"NodeUnreachable": 1}
    with pytest.raises(TaskDeferred):
        operator().start_again(context, **deferred.kwargs)
    (pod,) = kubernetes.created
    owner = "--owner=task sample 0 after 1 abandoned of manual__2026-01-02"
    assert owner in pod["spec"]["containers"][0]["args"]


def test_a_pod_on_such_a_node_that_somebody_removed_is_replaced(kubernetes, context):
    assert restart(context, UNREACHABLE).kwargs["restarts"]["counts"] == {"NodeUnreachable": 1}


# Queues of Kueue

GATED = condition("PodScheduled", "False", "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates")
BUSY = "insufficient unused quota for nvidia.com/gpu in flavor a100, 1 more needed"


class Kueue:
    """Double of the objects of Kueue: a LocalQueue and the pod's Workload."""

    def __init__(self, active="True", message=BUSY, reason="Pending", status=200):
        self.status = status
        self.queue = {"status": {"conditions": [self.condition("Active", active, "ClusterQueue gpus is stopped", "x")]}}
        owner = {"ownerReferences": [{"uid": "u1"}]}
        unmet = {"conditions": [self.condition("QuotaReserved", "False", message, reason)]}
        self.workloads = [{"metadata": {}, "status": {}}, {"metadata": owner, "status": unmet}]

    @staticmethod
    def condition(kind, status, message, reason):
        return {"type": kind, "status": status, "message": message, "reason": reason}

    def get_namespaced_custom_object(self, group, version, namespace, plural, name):
        assert (group, namespace, plural, name) == ("kueue.x-k8s.io", "halos", "localqueues", "gpus")
        if self.status != 200:
            raise ApiException(status=self.status)
        return self.queue

    def list_namespaced_custom_object(self, group, version, namespace, plural):
        assert (group, namespace, plural) == ("kueue.x-k8s.io", "halos", "workloads")
        if version == "v1beta2":  # an older Kueue
            raise ApiException(status=404)
        return {"items": self.workloads}


@pytest.fixture
def queued(kubernetes, tmp_path, monkeypatch):
    """``queued(kueue, seconds)`` puts a pod that has waited at the gate of its queue for so long."""
    profiles = {"default": PROFILE | {"queue": "gpus", "scheduleTimeoutSeconds": 3600}, "cpu": {}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER | {"profiles": profiles}))

    def queued(kueue, seconds=180):
        monkeypatch.setattr(queues, "CustomObjectsApi", lambda client: kueue)
        pod = kubernetes.put(make_pod(conditions=[GATED], **PENDING))
        pod.metadata.uid = "u1"
        pod.metadata.creation_timestamp = datetime.now(UTC) - timedelta(seconds=seconds)

    return queued


def test_a_queue_is_looked_at_after_three_minutes(queued, kubernetes, context):
    queued(Kueue())
    kubernetes.pod = None
    assert deferral(context).trigger.schedule_timeout == 180


@pytest.mark.parametrize(
    ("kueue", "words"),
    [
        (Kueue(status=404), "the LocalQueue gpus does not exist in namespace halos"),
        (Kueue(active="False"), "the LocalQueue gpus is not active: ClusterQueue gpus is stopped"),
        (Kueue(reason="Inadmissible", message="no flavor"), "can never admit it: no flavor"),
        (Kueue(message="insufficient quota for gpu in flavor a, request > maximum capacity (8 > 4)"), "(8 > 4)"),
    ],
)
def test_a_queue_that_never_admits_the_pod_is_reported(queued, kubernetes, context, kueue, words):
    queued(kueue)
    with pytest.raises(QueueRejected, match=re.escape(words)):
        come_back(context, "timeout")
    assert [name for name, _ in kubernetes.deleted] == [POD]


@pytest.mark.parametrize(
    "kueue", [Kueue(), Kueue(status=403), Kueue(message=f"untolerated taint in flavor spot, {BUSY}")]
)
def test_a_queue_that_is_busy_is_waited_for(queued, kubernetes, context, kueue):
    queued(kueue)
    with pytest.raises(TaskDeferred) as caught:
        come_back(context, "timeout")
    assert caught.value.method_name == "trigger_reentry"
    assert 3415 <= caught.value.trigger.schedule_timeout <= 3420
    assert kubernetes.deleted == []


def test_a_busy_queue_is_not_waited_for_longer_than_the_profile_allows(queued, kubernetes, context):
    queued(Kueue(), seconds=3601)
    assert restart(context, "timeout").kwargs["restarts"]["counts"] == {"Unschedulable": 1}


# Starting again


def restart(context, event, **more):
    """Resume with a failure of the infrastructure; gives what is deferred."""
    with pytest.raises(TaskDeferred) as caught:
        come_back(context, event, **more)
    assert caught.value.method_name == "start_again"
    return caught.value


def preempted():
    return make_pod(ended(143), deleted=True, conditions=PREEMPTED, **FAILED)


def minutes(deferred):
    return round((deferred.trigger.moment - datetime.now(UTC)).total_seconds() / 60, 1)


def test_a_preempted_pod_is_started_again_in_the_same_try(kubernetes, context):
    kubernetes.put(preempted())
    deferred = restart(context, "failed")
    assert [name for name, _ in kubernetes.deleted] == [POD]
    assert minutes(deferred) == 0.5
    assert deferred.kwargs["restarts"]["counts"] == {"Evicted": 1}
    json.dumps(deferred.kwargs)
    with pytest.raises(TaskDeferred) as caught:
        operator().resume_execution("start_again", deferred.kwargs | {"event": deferred.trigger.moment}, context)
    assert len(kubernetes.created) == 1
    assert caught.value.method_name == "trigger_reentry"
    assert caught.value.trigger.trigger_kwargs == deferred.kwargs  # they come back with the next event
    json.dumps(caught.value.trigger.serialize()[1], default=str)


def test_the_delay_grows_and_every_failure_counts(kubernetes, context):
    restarts, delays = {}, []
    for _ in range(9):
        kubernetes.put(preempted())
        restarts = restart(context, "failed", **restarts).kwargs
        delays.append(minutes(restart(context, "failed", **restarts)))
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert restarts["restarts"]["counts"] == {"Evicted": 9}


@pytest.mark.parametrize("event", ["error", "failed", "timeout"])
def test_a_pod_that_is_gone_is_started_again(kubernetes, context, event):
    assert restart(context, event).kwargs["restarts"]["counts"] == {"PodLost": 1}


def test_an_api_server_that_fails_is_asked_again_and_the_pod_goes_on(kubernetes, context, monkeypatch):
    kubernetes.put(make_pod(running(), phase="Running"))
    with monkeypatch.context() as patch:

        def broken(name, namespace):
            raise ApiException(status=500, reason="etcd")

        patch.setattr(PodStageOperator.hook, "get_pod", broken)
        deferred = restart(context, "error")
    with pytest.raises(TaskDeferred) as caught:
        operator().start_again(context, **deferred.kwargs)
    assert caught.value.trigger.pod_name == POD
    assert (kubernetes.created, kubernetes.deleted) == ([], [])


def test_a_quota_has_time_to_become_free(kubernetes, context):
    kubernetes.refusal = ApiException(status=403, reason="r")
    kubernetes.refusal.body = QUOTA
    with pytest.raises(TaskDeferred) as caught:
        operator().execute(context)
    assert minutes(caught.value) == 5


def test_a_fault_of_a_gpu_is_found_in_the_log_and_tried_on_three_pods(kubernetes, context):
    restarts = {}
    kubernetes.log = f"RuntimeError: NCCL error: unhandled system error\n{WORDS}"
    for _ in range(2):
        kubernetes.put(make_pod(ended(7, message="too short"), **FAILED))
        restarts = restart(context, "failed", **restarts).kwargs
    kubernetes.put(make_pod(ended(7), **FAILED))
    with pytest.raises(InfrastructureFailed, match=r"GpuFault 3 times.*the evaluation itself may be the cause"):
        come_back(context, "failed", **restarts)


def test_after_the_budget_it_fails_with_what_happened_and_the_store_keeps_it(kubernetes, context, stored):
    first = datetime.now(UTC) - timedelta(hours=23, minutes=50)
    counts = {"Evicted": 30, "NodeLost": 1}
    kubernetes.put(preempted())
    before = {"first": first.isoformat(), "counts": counts}
    with pytest.raises(InfrastructureFailed, match=r"Evicted 31 times, NodeLost 1 time in 23\.8 hours") as caught:
        come_back(context, "failed", restarts=before)
    assert "PreemptionByScheduler" in str(caught.value)
    (note,) = stored()
    assert (note.run, note.stage, note.reason) == ("manual__2026-01-02", "sample", str(caught.value))


def test_a_failure_that_cannot_be_kept_is_raised_nevertheless(kubernetes, context, without_budget, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_STORE", "file:///dev/null/store")
    kubernetes.put(preempted())
    with pytest.raises(InfrastructureFailed):
        come_back(context, "failed")


def test_other_failures_are_not_kept(kubernetes, context, stored):
    kubernetes.put(make_pod(ended(2), **FAILED))
    with pytest.raises(StageFailed):
        come_back(context, "failed")
    assert stored() == []


# Cleaning up


def test_cleaning_up_raises_the_named_failure(kubernetes, context):
    pod = kubernetes.put(make_pod(ended(137, "OOMKilled"), phase="Failed"))
    with pytest.raises(OutOfMemory, match="3 of 12 prompts") as caught:
        operator().cleanup(pod, pod, context=context)
    assert type(caught.value.__cause__) is AirflowException
    assert kubernetes.pod is None


def test_cleaning_up_after_success(kubernetes, context):
    pod = kubernetes.put(make_pod(ended(0), phase="Succeeded"))
    operator().cleanup(pod, pod, context=context)
    assert kubernetes.pod is None


def test_a_killed_task_deletes_its_pod(kubernetes, context):
    task = operator()
    with pytest.raises(TaskDeferred):
        task.execute(context)
    task.on_kill()
    assert kubernetes.deleted == [(context["pushed"]["pod_name"], 60)]
    task.cleanup(make_pod(running()), make_pod(running()), context=context)  # no failure: the user killed it


def test_an_invalid_job(kubernetes, context):
    with pytest.raises(ValueError, match="image"):
        PodStageOperator(task_id="one", job={"stage": "sample"}).execute(context)
