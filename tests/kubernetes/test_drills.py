"""Failures on a real cluster: how they look in the log, whether they are retried, and what is kept."""

import json
import re
import socket
import threading

import pytest

from tests.airflow_server import wait_for
from tests.helm.release import CHART, merged
from tests.kubernetes.conftest import HOST, KEYS, NAMESPACE
from tests.kubernetes.suites import TASK_FILES

pytestmark = pytest.mark.kubernetes
CHECKPOINT, OTHER = "smollm2-135m", "smollm2-135m-rounded"

CODE_TASK = f"""
task: own_code
unsafe_code: true
dataset_path: json
dataset_kwargs: {{data_files: {{test: /checkpoints/{TASK_FILES}/data.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "x"
generation_kwargs: {{max_gen_toks: 4, until: ["\\n"]}}
process_results: !function code.look_around
metric_list:
  - {{metric: network, aggregation: mean, higher_is_better: true}}
  - {{metric: forged, aggregation: mean, higher_is_better: true}}
  - {{metric: seen, aggregation: mean, higher_is_better: true}}
  - {{metric: secrets, aggregation: mean, higher_is_better: true}}
  - {{metric: works, aggregation: mean, higher_is_better: true}}
"""
# What code that a model wrote could try. Each metric counts what it achieves.
CODE = """
import os
import socket
import subprocess
from pathlib import Path


def achieved(*attempts):
    count = 0
    for attempt in attempts:
        try:
            attempt()
            count += 1
        except OSError:
            pass
    return count


def look_around(doc, results):
    return {{
        "network": achieved(lambda: socket.create_connection(("{host}", {port}), timeout=5).close()),
        "forged": achieved(
            lambda: Path("/outbox/record.json").write_text("forged"),
            lambda: Path("/answers/answers.json.gz").write_text("forged"),
            lambda: Path("/checkpoints/{folder}/code.py").write_text("forged"),
        ),
        "seen": achieved(
            lambda: os.listdir("/checkpoints"),
            lambda: os.listdir("/cache"),
            lambda: Path("/answers/answers.json.gz").read_bytes(),
            lambda: Path(f"/proc/{{os.getppid()}}/environ").read_bytes(),
        ),
        "secrets": sum(name in os.environ for name in {keys}),
        "works": int(subprocess.run(["python3", "-c", "open('own', 'w')"]).returncode == 0),
    }}
"""


def harness(lab, run_id):
    """The state of a run's one harness task."""
    return next(one["state"] for one in lab.instances(run_id) if one["task_id"] == "harness")


@pytest.mark.slow
def test_a_pod_that_takes_too_much_memory(lab):
    run_id = lab.trigger(checkpoint=CHECKPOINT, suite="starved")
    state, states = lab.finish(run_id)
    assert state == harness(lab, run_id) == "failed", states
    [tries] = [one["try_number"] for one in lab.instances(run_id) if one["task_id"] == "harness"]
    # Retries would be four. Airflow loses a try if the task is resumed and runs before the scheduler has read that it
    # was deferred. Both parts have one key, so it takes the end of the first for that of the task ("state mismatch" in
    # process_executor_events of its scheduler), unless the task is still only scheduled.
    assert tries <= 2
    log = lab.log(run_id, "harness", 0, attempt=tries)
    assert "OutOfMemory" in log
    assert "Raise memory in its profile" in log


@pytest.mark.slow
def test_a_pod_that_is_deleted_while_it_samples(admin, lab):
    """The same try starts another pod, which keeps what was sampled."""
    earlier = set(lab.watcher.pods)
    run_id = lab.trigger(checkpoint=OTHER, suite="resumed")
    wait_for(lambda: list(lab.store.glob(f"runs/{OTHER}/sample/*/outputs.parts/*/*.jsonl")), 180)
    (first,) = lab.watcher.since(earlier, "sample")
    admin.core.delete_namespaced_pod(first.metadata.name, NAMESPACE)
    state, states = lab.finish(run_id, 900)
    assert (state, states["sample", "0"], states["judge", "demo"]) == ("success",) * 3
    assert len(lab.watcher.since(earlier, "sample")) == 2
    assert [one["try_number"] for one in lab.instances(run_id) if one["task_id"] == "sample"] == [1]
    log = lab.log(run_id, "sample", 0)
    assert "the stage starts again" in log
    assert "PodLost 1 time" in log
    assert int(re.search(r"(\d+) of 12 prompts already have answers", log)[1]) > 0


@pytest.mark.slow
def test_an_image_that_does_not_exist(lab):
    with lab.upgraded(kubernetes={"images": {"worker": "docker.io/halos-eval/worker:none"}}):
        run_id = lab.trigger(checkpoint=CHECKPOINT, suite="no_image")
        wait_for(lambda: lab.states(run_id)["fetch", -1] == "failed", 120, lambda: lab.states(run_id))
    log = lab.log(run_id, "fetch")
    assert "ImageUnavailable" in log
    assert "docker.io/halos-eval/worker:none" in log
    state, states = lab.finish(run_id)
    assert state == states["plan", -1] == "failed"
    assert "has no manifest; the task `fetch` writes it" in lab.log(run_id, "plan")


@pytest.mark.slow
def test_more_gpus_than_the_pool_has(lab):
    run_id = lab.trigger(checkpoint=CHECKPOINT, suite="many")
    state, states = lab.finish(run_id)
    assert state == states["plan", -1] == "failed"
    assert "profile many requests 9 GPUs, but the pool has only 2" in lab.log(run_id, "plan")


@pytest.mark.slow
def test_more_gpus_than_there_are(lab):
    with lab.upgraded(pools={"gpu": 9}):
        run_id = lab.trigger(checkpoint=CHECKPOINT, suite="many")
        state, states = lab.finish(run_id, 300)
    assert state == harness(lab, run_id) == "failed", states
    log = lab.log(run_id, "harness", 0)
    assert "InfrastructureFailed" in log
    assert "Unschedulable 1 time" in log
    assert "Insufficient nvidia.com/gpu" in log
    (note,) = lab.store.glob(f"interrupted/many/{CHECKPOINT}/*.json")
    assert json.loads(note.read_text())["run"] == run_id


@pytest.mark.slow
def test_everything_of_airflow_is_killed_in_the_middle(admin, lab):
    """The chart is upgraded and rolled back, then scheduler, triggerer, DAG processor and API server get SIGKILL.

    Started again, they find the pod.
    """
    earlier = set(lab.watcher.pods)
    run_id = lab.trigger(checkpoint=CHECKPOINT, suite="restarted")
    pod = lab.running(earlier, "harness")
    wait_for(lambda: harness(lab, run_id) == "deferred", 60, lambda: lab.states(run_id))
    lab.helm.upgrade(CHART, "halos-eval", merged(lab.values, {"pools": {"gpu": 3}}))
    lab.helm.rollback("halos-eval")
    lab.kill()
    wait_for(lambda: not lab.is_up(), 30)
    assert admin.core.read_namespaced_pod(pod.metadata.name, NAMESPACE).status.phase == "Running"
    wait_for(lab.is_up, 240, lab.logs)
    state, states = lab.finish(run_id, 900)
    assert state == "success", states
    assert [one.metadata.uid for one in lab.watcher.since(earlier, "harness")] == [pod.metadata.uid]


@pytest.mark.slow
def test_an_upgrade_and_a_rollback_while_a_pod_runs(admin, lab):
    """Airflow reads the changed cluster file, in which the pod's profile is larger, and then the old one again."""
    earlier = set(lab.watcher.pods)
    run_id = lab.trigger(checkpoint=CHECKPOINT, suite="upgraded")
    pod = lab.running(earlier, "harness")
    wait_for(lambda: harness(lab, run_id) == "deferred", 60, lambda: lab.states(run_id))
    with lab.stopped(pod):
        with lab.upgraded(profiles={"default": {"gpus": 2, "tensorParallelSize": 1, "runTimeoutSeconds": 7200}}):
            assert "runTimeoutSeconds: 7200" in lab.cluster_file()
            assert harness(lab, run_id) == "deferred"
        assert admin.core.read_namespaced_pod(pod.metadata.name, NAMESPACE).status.phase == "Running"
    state, states = lab.finish(run_id, 600)
    assert state == "success", states
    assert [one.metadata.uid for one in lab.watcher.since(earlier, "harness")] == [pod.metadata.uid]
    assert [one["try_number"] for one in lab.instances(run_id) if one["task_id"] == "harness"] == [1]


@pytest.mark.slow
def test_a_task_that_is_marked_failed_leaves_no_pod(lab):
    earlier = set(lab.watcher.pods)
    run_id = lab.trigger(checkpoint=CHECKPOINT, suite="marked")
    pod = lab.running(earlier, "harness")
    path = f"/dags/evaluate_checkpoint/dagRuns/{run_id}/taskInstances/harness/0"
    lab.call("PATCH", path, {"new_state": "failed"})
    names = lambda: [one.metadata.name for one in lab.pods()]  # noqa: E731
    wait_for(lambda: pod.metadata.name not in names(), 90, names)
    state, states = lab.finish(run_id)
    assert state == states["verdict", -1] == "failed"
    assert len(lab.watcher.since(earlier, "harness")) == 1


def test_a_model_s_code_has_no_network_and_no_secrets(admin, lab):
    with socket.create_server(("0.0.0.0", 0)) as server:
        connections = []
        threading.Thread(target=accept, args=(server, connections), daemon=True).start()
        folder = lab.folders.checkpoints / TASK_FILES
        (folder / "data.jsonl").write_text(json.dumps({"question": "1 + 1 ="}) + "\n")
        (folder / "own_code.yaml").write_text(CODE_TASK)
        port = server.getsockname()[1]
        places = {"host": HOST, "port": port, "folder": TASK_FILES}
        (folder / "code.py").write_text(CODE.format(keys=sorted(KEYS), **places))
        earlier = set(lab.watcher.pods)
        run_id = lab.trigger(checkpoint=CHECKPOINT, suite="code")
        state, states = lab.finish(run_id, 480)
        assert state == "success", states
    (record,) = lab.store.glob(f"runs/{CHECKPOINT}/harness.own_code/*/record.json")  # carried from the outbox
    scores = {score["metric"]: score["value"] for score in json.loads(record.read_text())["scores"]}
    # This cluster does not enforce NetworkPolicies: only the sandbox closes the network.
    assert scores == {"network": 0, "forged": 0, "seen": 0, "secrets": 0, "works": 1}
    assert not connections
    (generated,) = lab.watcher.since(earlier, "harness")
    assert generated.metadata.labels["halos-eval/network"] == "egress"
    (pod,) = lab.watcher.since(earlier, "score")
    assert not (pod.spec.containers[0].resources.limits or {}).keys() & {"nvidia.com/gpu"}
    mounted = {one.mount_path for one in pod.spec.containers[0].volume_mounts}
    assert {path for path in mounted if path.startswith("/checkpoints")} == {f"/checkpoints/{TASK_FILES}"}
    assert "/cache" not in mounted
    assert pod.metadata.labels["halos-eval/network"] == "none"
    assert pod.spec.service_account_name == "halos-eval-code"
    assert not [one.name for one in pod.spec.containers[0].env if one.value_from]
    policies = admin.client.NetworkingV1Api(admin.api).list_namespaced_network_policy(NAMESPACE).items
    selecting = [one.spec for one in policies if selects(one.spec.pod_selector, pod.metadata.labels)]
    assert {kind for spec in selecting for kind in spec.policy_types} == {"Ingress", "Egress"}
    assert not [spec for spec in selecting if spec.egress or spec.ingress]
    assert not [path for path in lab.folders.outbox.rglob("*") if path.is_file()]


def accept(server, connections):
    try:
        while True:
            connections.append(server.accept())
    except OSError:
        pass


def selects(selector, labels):
    """Whether a label selector takes these labels."""
    for one in selector.match_expressions or ():
        assert one.operator in {"In", "NotIn"}
        if (labels.get(one.key) in one.values) != (one.operator == "In"):
            return False
    return all(labels.get(key) == value for key, value in (selector.match_labels or {}).items())
