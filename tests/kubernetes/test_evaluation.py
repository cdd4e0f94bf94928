"""``evaluate_checkpoint`` on a real cluster: the same scores as on one machine, within the pool, with few rights."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from tests.airflow_server import wait_for
from tests.doubles import result_of
from tests.kubernetes.conftest import DATABASE, GIVEN, KEYS, NAMESPACE, commands, run
from tests.kubernetes.watcher import gpus_of

# The first test waits for Airflow, the judge and the evaluation, if this file runs alone.
pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1800)]
CHECKPOINT, OTHER = "smollm2-135m", "smollm2-135m-rounded"
NIGHT = "nightly_evaluation"


def rows(path):
    """The filled cells of a table by checkpoint. Which columns there are depends on the other rows."""
    found = csv.DictReader(path.read_text().splitlines())
    return {row["model_name"]: {column: value for column, value in row.items() if value} for row in found}


@pytest.fixture(scope="module")
def evaluated(lab):
    """The demo's suite on the cluster, sampling with two GPUs: the run, and the pods that it started."""
    earlier = set(lab.watcher.pods)
    run_id = lab.trigger(checkpoint=CHECKPOINT, suite="demo")
    state, tasks = lab.finish(run_id, 900)
    assert state == "success", (tasks, lab.log(run_id, "plan"))
    return run_id, lab.watcher.since(earlier)


def test_the_scores_are_those_of_one_machine(lab, evaluated, demo_store):
    here = demo_store
    there = rows(lab.store / "reports" / "demo" / "summary.csv")[CHECKPOINT]
    expected = rows(here / "reports" / "demo" / "summary.csv")[CHECKPOINT]
    for row in (there, expected):
        for column in ("registered", "evaluated", "gpu_hours", "fingerprint", "stages"):  # of the run, not scores
            row.pop(column, None)
    assert there.keys() == expected.keys()
    for column, value in expected.items():
        if column.startswith("alpacaeval_") and value.replace(".", "").isdigit():
            # The judge's server batches whatever comes together, so its log-probabilities round differently.
            assert float(there[column]) == pytest.approx(float(value), rel=1e-3)
        else:
            assert there[column] == value, column
    # The same fingerprints, so the same places; what other tests have left beside them is not looked at.
    records = [*here.glob(f"runs/{CHECKPOINT}/sample/*/outputs.record.json")]
    records += here.glob(f"runs/{CHECKPOINT}/harness.demo_*/*/record.json")
    assert len(records) == 4
    for record in records:
        name = "outputs.json" if record.parts[-3] == "sample" else f"samples/{record.parts[-3][8:]}.jsonl.gz"
        assert content(result_of(lab.store / record.relative_to(here), name)) == content(result_of(record, name))


def content(file):
    data = file.read_bytes()
    return gzip.decompress(data) if file.suffix == ".gz" else data


def test_stages_hold_what_their_profile_says_and_no_more_than_the_pool(lab, evaluated):
    _, pods = evaluated
    names = {pod.metadata.name for pod in pods}
    held = {}
    for pod in pods:
        held.setdefault(pod.metadata.labels["app.kubernetes.io/component"], []).append(gpus_of(pod))
    assert held == {"fetch": [0], "sample": [2], "pack": [1], "judge": [1], "summarize": [0]}
    sums = [sum(holding.gpus.values()) for holding in lab.watcher.holdings if names & holding.gpus.keys()]
    assert max(sums) == 2  # the pool's size, which is reached
    pool = lab.call("GET", "/pools/halos_eval_gpu")
    assert (pool["slots"], pool["include_deferred"]) == (2, True)


def test_each_stage_reads_only_its_own_secrets(lab, evaluated):
    store = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    found = {stage: KEYS.keys() & variables.keys() for stage, variables in lab.watcher.environments.items()}
    assert found["judge"] == store | {"OPENAI_API_KEY"}
    assert found["fetch"] == store | {"HF_TOKEN"}
    assert found["sample"] == found["pack"] == found["summarize"] == store
    assert found["serve"] == set()
    assert lab.watcher.environments["judge"]["OPENAI_API_KEY"] == KEYS["OPENAI_API_KEY"]


def test_no_secret_is_shown_anywhere(admin, lab, evaluated):
    run_id, pods = evaluated
    shown = [str(pod) for pod in pods]
    shown += [str(admin.core.list_namespaced_event(NAMESPACE)), lab.cluster_file(), lab.logs()]
    shown += [str(lab.call("GET", f"/dags/evaluate_checkpoint/dagRuns/{run_id}/taskInstances?limit=50"))]
    ran = [one for one in lab.instances(run_id) if one["try_number"]]  # others have no log
    shown += [lab.log(run_id, one["task_id"], one["map_index"]) for one in ran]
    for text in shown:
        assert not [key for key in {DATABASE, *GIVEN.values()} if key in text]
    for record in (lab.store / "runs").rglob("*.json"):
        assert not [key for key in KEYS.values() if key in record.read_text()]


def test_pods_have_no_rights(lab, evaluated):
    _, pods = evaluated
    containers = {pod.metadata.labels["app.kubernetes.io/component"]: len(pod.spec.containers) for pod in pods}
    assert containers == {"fetch": 1, "sample": 1, "pack": 1, "judge": 2, "summarize": 1}
    for pod in pods:
        assert pod.spec.automount_service_account_token is False
        assert not [volume for volume in pod.spec.volumes if volume.secret or volume.projected]
        assert pod.spec.security_context.run_as_non_root
        assert pod.spec.security_context.seccomp_profile.type == "RuntimeDefault"
        assert pod.spec.service_account_name == f"halos-eval-{pod.metadata.labels['halos-eval/trust']}"
        for container in pod.spec.containers:
            assert container.security_context.read_only_root_filesystem
            assert container.security_context.allow_privilege_escalation is False
            assert container.security_context.capabilities.drop == ["ALL"]


@pytest.mark.parametrize(
    ("account", "verb", "resource", "allowed"),
    [
        ("scheduler", "create", "pods", True),
        ("scheduler", "delete", "pods", True),
        ("triggerer", "get", "pods/log", True),
        ("triggerer", "list", "events", True),
        ("scheduler", "get", "persistentvolumeclaims", True),
        ("scheduler", "get", "secrets", False),
        ("scheduler", "create", "pods/exec", False),
        ("scheduler", "get", "configmaps", False),
        ("scheduler", "create", "jobs", False),
        ("api-server", "create", "pods", False),
        ("dag-processor", "get", "pods", False),
    ],
)
def test_airflow_may_do_no_more_than_it_needs(admin, lab, account, verb, resource, allowed):
    client = admin.client
    resource, _, subresource = resource.partition("/")
    asked = client.V1ResourceAttributes(
        namespace=NAMESPACE, verb=verb, resource=resource, subresource=subresource or None
    )
    user = f"system:serviceaccount:{NAMESPACE}:airflow-{account}"
    review = client.V1SubjectAccessReview(spec=client.V1SubjectAccessReviewSpec(user=user, resource_attributes=asked))
    answer = client.AuthorizationV1Api(admin.api).create_subject_access_review(review)
    assert bool(answer.status.allowed) is allowed


def test_what_is_staged_is_in_the_cache_that_the_pods_share(lab, evaluated):
    manifest = lab.store / "manifests" / "demo.json"
    copies = {path.read_bytes(): path for path in (lab.folders.cache / "halos-eval").iterdir()}
    place = Path("/cache/halos-eval", copies[manifest.read_bytes()].name)
    records = list((lab.store / "runs" / CHECKPOINT).glob("harness.demo_*/*/record.json"))
    used = {json.loads(path.read_text())["provenance"]["config"]["manifest"] for path in records}
    assert str(place) in used
    assert {Path(one).name for one in used} <= {
        path.name for path in copies.values()
    }  # other tests have staged less before


def test_the_log_of_a_pod_is_the_log_of_its_task(lab, evaluated):
    run_id, _ = evaluated
    assert "sampled 12 of 12 prompts" in lab.log(run_id, "sample", 0)


def test_a_judge_is_served_beside_its_stage(lab, evaluated):
    """Two containers of one pod: the server ends by itself, so the pod succeeds."""
    run_id, _ = evaluated
    log = lab.log(run_id, "judge", 0)
    assert "waiting for the judge's server" in log
    (record,) = [json.loads(path.read_text()) for path in lab.store.glob(f"runs/{CHECKPOINT}/judge/*/record.json")]
    inputs = record["provenance"]["inputs"]
    assert (inputs["judge_model"], inputs["judge_gpus"]) == (CHECKPOINT, "none")
    assert len(inputs["judge_weights"]) == 64
    assert record["coverage"] == {"attempted": 12, "scored": 12}


def test_no_pod_is_left(lab, evaluated):
    assert not lab.pods()


def test_a_night(lab):
    """The policy gives a suite to one of the two checkpoints. Unpaused, the DAG begins with the last night at once."""
    earlier = set(lab.watcher.pods)
    lab.inside("airflow", "dags", "unpause", NIGHT)
    (night,) = wait_for(lambda: lab.call("GET", f"/dags/{NIGHT}/dagRuns")["dag_runs"], 60)
    state, tasks = lab.finish(night["dag_run_id"], 300, NIGHT)
    runs = lab.call("GET", "/dags/evaluate_checkpoint/dagRuns")["dag_runs"]
    (run,) = [one for one in runs if one["conf"]["suite"] == "night"]
    assert state == "success", tasks
    assert run["state"] == "success"
    assert {pod.metadata.labels["halos-eval/priority"] for pod in lab.watcher.since(earlier)} == {"nightly"}
    table = rows(lab.store / "reports" / "night" / "summary.csv")
    assert {name: row["status"] for name, row in table.items()} == {OTHER: "complete; trial: limit 6"}


def test_helm_test_finds_what_is_missing(admin, lab):
    """Everything is there but GPUs, which this cluster only pretends to have, and a way to the hub."""
    from helm_python import HelmError

    with pytest.raises(HelmError):
        lab.helm.test("halos-eval", timeout=300)
    found = {}
    for image in ("judge", "worker"):
        name = f"halos-eval-doctor-{image}"
        # The client turns the bytes of a log into their repr.
        log = admin.core.read_namespaced_pod_log(name, NAMESPACE, _preload_content=False)
        found[image] = log.data.decode().splitlines()
        admin.core.delete_namespaced_pod(name, NAMESPACE)
    checks = {
        image: [line.split(":")[0] for line in lines if line.startswith(("ok ", "FAILED "))]
        for image, lines in found.items()
    }
    assert checks["judge"] == ["ok      store", "ok      judge", "ok      sandbox"]
    assert checks["worker"] == [
        "ok      store", "ok      checkpoints", "ok      folder /cache", "ok      folder /outbox",
        "ok      folder /compile", "FAILED  hub", "FAILED  GPU",
    ]  # fmt: skip


def test_airflow_finds_what_it_needs(lab):
    """As the page tells, in the pod that runs the tasks: its database, files and rights."""
    (command,) = commands(
        "kubectl -n evaluation exec sts/airflow-scheduler -- python -m halos_eval.orchestration.doctor"
    )
    found = run(command)
    assert [line.split(":")[0] for line in found.splitlines() if line.startswith(("ok ", "FAILED "))] == [
        f"ok      {name}"
        for name in ("cluster file", "store", "checkpoints", "policy", "pools", "permissions", "claims")
    ]
