"""The operator of a stage's pod with a double of Kubernetes: the pods that it starts, awaits, reports and deletes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import kubernetes_validate
import pytest
import yaml
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from kubernetes.client import ApiClient, ApiException, CoreV1EventList, V1Container, V1PodList, V1PodSpec

from halos_eval.config.cluster import load_cluster
from halos_eval.errors import BadInput
from halos_eval.orchestration.failures import (
    Evicted,
    ImageUnavailable,
    OutOfMemory,
    PodLost,
    PodRefused,
    QuotaExceeded,
    StageFailed,
    StageInterrupted,
    StartTimeout,
    Unschedulable,
)
from halos_eval.orchestration.pod_spec import manifest
from halos_eval.orchestration.pods import PodStageOperator
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
        self.pod, self.refusal = None, None
        self.calls = []

    def put(self, pod):
        """Set the pod, with the fields that every pod has."""
        pod.metadata.namespace = "halos"
        pod.metadata.labels = {"try_number": "1"}
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
        return [b"the log's first line\n", WORDS.encode()]

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
        "params": {"priority": "nightly"},
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
        (500, "etcd", ApiException, 5),  # the client library retries by itself
    ],
)
def test_a_pod_that_is_rejected(kubernetes, context, status, body, kind, calls):
    kubernetes.refusal = ApiException(status=status, reason="r")
    kubernetes.refusal.body = body
    with pytest.raises((ApiException, AirflowException)) as caught:
        operator().execute(context)
    assert type(caught.value) is kind
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
        ("error", make_pod(waiting("ErrImagePull"), **PENDING), ImageUnavailable),
        ("error", make_pod(ended(137, "OOMKilled"), **FAILED), OutOfMemory),
    ],
)  # fmt: skip
def test_every_failure_has_its_name_and_leaves_no_pod(kubernetes, context, capsys, event, pod, kind):
    kubernetes.put(pod)
    with pytest.raises(AirflowException) as caught:
        come_back(context, event)
    assert type(caught.value) is kind
    assert [name for name, _ in kubernetes.deleted] == [POD]
    assert kubernetes.labels == {"already_checked": "True"}  # the next try starts a new pod
    assert "the log's first line" in capsys.readouterr().out


@pytest.mark.parametrize("event", ["error", "failed", "timeout"])
def test_a_pod_that_is_gone(kubernetes, context, event):
    with pytest.raises(PodLost, match=f"pod {POD} is gone"):
        come_back(context, event)


def test_an_error_of_the_trigger_with_a_running_pod_defers_again(kubernetes, context):
    kubernetes.put(make_pod(running(), phase="Running"))
    with pytest.raises(TaskDeferred) as caught:
        come_back(context, "error")
    assert (caught.value.trigger.schedule_timeout, caught.value.trigger.startup_timeout) == (111, 22)
    assert kubernetes.deleted == []


def test_an_error_of_the_server_is_raised_as_it_is(kubernetes, context, monkeypatch):
    def broken(name, namespace):
        raise ApiException(status=500, reason="etcd")

    monkeypatch.setattr(PodStageOperator.hook, "get_pod", broken)
    with pytest.raises(ApiException, match="etcd"):
        come_back(context, "success")


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
