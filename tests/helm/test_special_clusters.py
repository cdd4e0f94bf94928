"""The blocks of docs/install-cluster.md for special clusters, over its lab.yaml: the pods that they make."""

from __future__ import annotations

import kubernetes_validate
import pytest
import yaml

from halos_eval.orchestration.pod_spec import manifest
from tests.helm.release import ROOT, merged
from tests.helm.test_access import QUEUES, allowed
from tests.helm.test_cluster_file import jobs
from tests.orchestration.test_pod_spec import VERSION, container

LAB = yaml.safe_load((ROOT / "examples" / "lab.yaml").read_text())


@pytest.fixture
def special(render):
    """``special(name)`` returns the release with that block, and its pods by stage or task."""

    def special(name, gpu="default"):
        release = render(merged(LAB, yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())))
        cluster, pods = release.cluster, {}
        for job in jobs("x"):
            profile = cluster.profiles[gpu if job.stage in {"sample", "harness"} else "cpu"]
            pods[job.title] = manifest(job, cluster.kubernetes, profile, "manual")
            kubernetes_validate.validate(pods[job.title], VERSION, strict=True)
            check_hardened(pods[job.title])
        return release, pods

    return special


def check_hardened(pod):
    spec, only = pod["spec"], container(pod)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"]["readOnlyRootFilesystem"] is True
    assert only["securityContext"]["allowPrivilegeEscalation"] is False
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_kueue(special):
    release, pods = special("kueue")
    queue = release.get("LocalQueue", "evaluation")
    assert queue["spec"]["clusterQueue"] == "gpus"
    labels = {title: pod["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") for title, pod in pods.items()}
    assert labels == dict.fromkeys(("sample", "gsm8k_cot", "humaneval"), queue["metadata"]["name"]) | dict.fromkeys(
        ("fetch", "judge", "summarize")
    )
    assert release.get("Role", "halos-eval-launcher")["rules"][4:] == QUEUES


def test_openshift(special):
    release, pods = special("openshift")
    for pod in [*pods.values(), *(release.get("Pod", f"halos-eval-doctor-{one}") for one in ("worker", "judge"))]:
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod["spec"]["securityContext"].keys()


def test_spot_nodes_and_autoscalers(special, render):
    lab = merged(LAB, yaml.safe_load((ROOT / "examples" / "overrides.yaml").read_text()))
    cluster = render(lab).cluster
    pod = manifest(next(jobs("spot")), cluster.kubernetes, cluster.profiles["spot"], "manual")
    kubernetes_validate.validate(pod, VERSION, strict=True)
    check_hardened(pod)
    assert pod["metadata"]["annotations"] == {
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }
    (term,) = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"][0]["values"] == ["spot"]


def test_no_direct_internet_access(special):
    release, pods = special("air-gapped")
    for title, pod in pods.items():
        only = container(pod)
        variables = {one["name"]: one.get("value") for one in only["env"]}
        assert only["image"].startswith("registry.lab.example/")
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert variables["HF_ENDPOINT"] == "https://hub.lab.example"
        mounts = {one["mountPath"]: one for one in only["volumeMounts"]}
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):
            assert mounts[variables[name].rpartition("/")[0]]["readOnly"]
        ports = [port["port"] for rule in allowed(release, pod, "Egress") for port in rule["ports"]]
        assert (3128 in ports) == (title != "humaneval")
    # Airflow reads the store with the same authority.
    bundle = next(one["value"] for one in release.airflow_values["env"] if one["name"] == "AWS_CA_BUNDLE")
    mounts = {one["mountPath"]: one["name"] for one in release.airflow_values["volumeMounts"]}
    volumes = {one["name"]: one for one in release.airflow_values["volumes"]}
    assert volumes[mounts[bundle.rpartition("/")[0]]]["configMap"] == {"name": "lab-ca"}


def test_secrets_and_other_drivers_as_volumes(render):
    csi = {"driver": "secrets-store.csi.k8s.io", "readOnly": True, "volumeAttributes": {"secretProviderClass": "hub"}}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Gi"}}}
    volumes = [
        {"name": "netrc", "secret": {"secretName": "netrc"}},
        {"name": "vault", "csi": csi},
        {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}},
    ]
    mounts = [{"name": one["name"], "mountPath": f"/mnt/{one['name']}"} for one in volumes]
    overrides = {"spec": {"volumes": volumes, "containers": [{"name": "base", "volumeMounts": mounts}]}}
    cluster = render(merged(LAB, {"profiles": {"default": {"podOverrides": overrides}}})).cluster
    pod = manifest(next(jobs("default")), cluster.kubernetes, cluster.profiles["default"], "manual")
    kubernetes_validate.validate(pod, VERSION, strict=True)
    check_hardened(pod)
    assert [one for one in pod["spec"]["volumes"] if one in volumes] == volumes
    assert [one for one in container(pod)["volumeMounts"] if one in mounts] == mounts
