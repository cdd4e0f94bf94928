"""The cluster file that the chart writes and the code reads, and the pods made from it."""

from __future__ import annotations

import kubernetes_validate
import pytest
import yaml

from halos_eval.config.cluster import Volume, load_cluster
from halos_eval.config.policy import EvaluationPolicy, load_policy
from halos_eval.orchestration.pod_spec import manifest
from halos_eval.planning.jobs import StageJob
from tests.helm.release import SCENARIOS, scenario

MADE = {"namespace", "serviceAccounts", "codeServiceAccountName", "volumes", "priorityClasses"}


def jobs(profile):
    """Yield one job of each kind. The last one executes model-written code."""
    yield StageJob(stage="sample", image="worker", argv=("sample",), profile=profile)
    yield StageJob(stage="fetch", image="worker", argv=("fetch",), profile=profile)
    yield StageJob(stage="judge", image="judge", argv=("judge",), profile=profile)
    yield StageJob(stage="summarize", image="judge", argv=("summarize",), profile=profile)
    yield StageJob(stage="harness", task="gsm8k_cot", image="worker", argv=("harness",), profile=profile)
    yield StageJob(
        stage="harness",
        task="humaneval",
        image="worker",
        argv=("harness",),
        profile=profile,
        outbox="a/b",
        answers="c/b",
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_code_reads_what_the_chart_writes(render, name, tmp_path, monkeypatch):
    path = tmp_path / "cluster.yaml"
    path.write_text(render(scenario(name)).cluster_file)
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(path))
    cluster = load_cluster()
    assert cluster.kubernetes.namespace == "evaluation"
    assert cluster.gpu_profile("default").gpus <= cluster.pools.gpu


@pytest.mark.parametrize("name", SCENARIOS)
def test_values_are_not_changed(render, chart, name):
    values = chart.merge_values(scenario(name))
    written = yaml.safe_load(render(scenario(name)).cluster_file)
    assert written["pools"] == values["pools"]
    assert written["profiles"] == values["profiles"]
    kubernetes = values["kubernetes"]
    assert {key: value for key, value in written["kubernetes"].items() if key not in MADE} == {
        key: value for key, value in kubernetes.items() if key not in MADE
    }
    assert kubernetes["volumes"].items() <= written["kubernetes"]["volumes"].items()


@pytest.mark.parametrize(
    ("cache", "fetched"),
    [({}, True), ({"readOnly": True}, True), ({"existingClaim": "mine"}, True), ({"enabled": False}, False)],
)
def test_data_is_fetched_if_pods_share_a_cache(render, cache, fetched):
    release = render(scenario("minimal") | {"claims": {"cache": cache}})
    assert release.cluster.can_fetch is fetched
    _, job, *_ = jobs("cpu")
    pod = manifest(job, release.cluster.kubernetes, release.cluster.profiles["cpu"], "manual")
    mounted = {one["name"]: one for one in pod["spec"]["containers"][0]["volumeMounts"]}
    assert ("cache" in mounted) is fetched
    sample = manifest(next(jobs("default")), release.cluster.kubernetes, release.cluster.profiles["default"], "manual")
    others = {one["name"]: one for one in sample["spec"]["containers"][0]["volumeMounts"]}
    assert others.get("cache", {}).get("readOnly", False) is fetched
    assert not mounted.get("cache", {}).get("readOnly")
    assert pod["metadata"]["labels"]["halos-eval/network"] == "egress"


@pytest.mark.parametrize("number", [1_000_000, 2**31 - 1])
def test_large_numbers_stay_numbers(render, number):
    values = scenario("minimal") | {"profiles": {"default": {"runTimeoutSeconds": number}}}
    assert render(values).cluster.profiles["default"].run_timeout_seconds == number
    values = scenario("minimal") | {"priorityClasses": {"values": {"manual": 1_000_000}}}
    assert render(values).get("PriorityClass", "halos-eval-manual")["value"] == 1_000_000


def test_it_names_objects_of_the_chart(render):
    release = render(scenario("minimal"))
    kubernetes = release.cluster.kubernetes
    for trust in ("fetch", "gpu", "judge", "code"):
        assert kubernetes.account(trust) in release.names("ServiceAccount")
    assert set(kubernetes.priority_classes.values()) == set(release.names("PriorityClass"))
    claims = {volume.persistent_volume_claim for volume in kubernetes.volumes.values()} - {None}
    assert claims == set(release.names("PersistentVolumeClaim"))
    assert kubernetes.volumes["suites"].config_map in release.names("ConfigMap")
    assert kubernetes.volumes["checkpoints"].read_only
    assert release.cluster.outbox == Volume(mount_path="/outbox", persistent_volume_claim="halos-eval-outbox")


def test_it_names_existing_objects(render):
    release = render(scenario("existing"))
    kubernetes = release.cluster.kubernetes
    assert {kubernetes.account(trust) for trust in ("fetch", "gpu", "judge")} == {"evaluation"}
    assert kubernetes.priority_classes == {"manual": "interactive", "nightly": "batch", "backfill": "batch"}
    assert kubernetes.volumes["checkpoints"].persistent_volume_claim == "trained-models"
    assert release.cluster.outbox is None
    assert release.names("PersistentVolumeClaim") == release.names("PriorityClass") == []
    assert release.names("ServiceAccount") == ["halos-eval-code", "halos-eval-launcher"]


def test_airflow_in_another_namespace_gets_its_files_there(render):
    release = render(scenario("gpu"))
    assert release.get("ConfigMap", "halos-eval-cluster")["metadata"]["namespace"] == "airflow"
    suites = [one for one in release.objects if one["metadata"]["name"] == "halos-eval-suites"]
    assert [one["metadata"]["namespace"] for one in suites] == ["evaluation", "airflow"]
    assert suites[0]["data"] == suites[1]["data"] == scenario("gpu")["suites"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_pods_are_valid(render, name):
    cluster = render(scenario(name)).cluster
    for profile_name, profile in cluster.profiles.items():
        sample, *_, code = jobs(profile_name)
        for job in (sample, code):
            pod = manifest(job, cluster.kubernetes, profile, "nightly")
            kubernetes_validate.validate(pod, "1.34", strict=True)


def test_a_profile_reaches_its_pod(render):
    cluster = render(scenario("gpu")).cluster
    job = next(jobs("large"))
    pod = manifest(job, cluster.kubernetes, cluster.profiles["large"], "nightly")
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "evaluation"
    assert pod["spec"]["runtimeClassName"] == "nvidia"
    assert pod["spec"]["priorityClassName"] == "halos-eval-nightly"
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"memory": "1000Gi", "nvidia.com/gpu": "8"}


def test_the_policy_is_not_changed(render, tmp_path, monkeypatch):
    policy = {"look_back_days": 3, "limits": {"night": {"gpu_hours": 40}}, "rules": [{"match": "a*", "suites": []}]}
    written = render(scenario("minimal") | {"policy": policy}).get("ConfigMap", "halos-eval-cluster")["data"]
    (tmp_path / "policy.yaml").write_text(written["policy.yaml"])
    monkeypatch.setenv("HALOS_EVAL_POLICY", str(tmp_path / "policy.yaml"))
    assert load_policy() == EvaluationPolicy.model_validate(policy)


@pytest.mark.parametrize("name", SCENARIOS)
def test_by_default_every_checkpoint_gets_the_whole_suite(render, name):
    written = render(scenario(name)).get("ConfigMap", "halos-eval-cluster")["data"]
    assert EvaluationPolicy.model_validate(yaml.safe_load(written["policy.yaml"])).rules[-1].suites == ("halos",)
