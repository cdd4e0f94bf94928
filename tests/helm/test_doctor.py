"""The pods of `helm test`: they have what a stage's pod has, and their command is one that the package takes."""

from __future__ import annotations

import kubernetes_validate
import pytest
import yaml

from halos_eval.cli.doctor import DoctorConfig
from halos_eval.orchestration.pod_spec import manifest
from tests.helm.release import ROOT, merged, scenario
from tests.helm.test_cluster_file import jobs
from tests.orchestration.test_pod_spec import VERSION

OTHERS = {"OPENAI_API_KEY"}  # the doctor's pod has the keys of all stages
LAB = yaml.safe_load((ROOT / "examples" / "lab.yaml").read_text())


def doctor(release, image):
    pod = release.get("Pod", f"halos-eval-doctor-{image}")
    [container] = pod["spec"]["containers"]
    return pod, container


def stage(release, image):
    """Return the pod of a stage with that image: sample or judge."""
    job = next(job for job in jobs("default" if image == "worker" else "cpu") if job.image == image)
    return manifest(job, release.cluster.kubernetes, release.cluster.gpu_profile(job.profile), "manual")


@pytest.mark.parametrize("image", ["worker", "judge"])
@pytest.mark.parametrize("values", [LAB, scenario("gpu")], ids=["lab", "gpu"])
def test_it_has_what_a_stage_has(render, values, image):
    release = render(values)
    (pod, container), expected = doctor(release, image), stage(release, image)
    [theirs] = expected["spec"]["containers"]
    for key in ("serviceAccountName", "securityContext", "nodeSelector", "tolerations", "runtimeClassName"):
        assert pod["spec"].get(key) == expected["spec"].get(key), key
    assert (container["image"], container["securityContext"]) == (theirs["image"], theirs["securityContext"])
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    assert len(mounts) == len(container["volumeMounts"]) == len(pod["spec"]["volumes"])
    assert {one["mountPath"] for one in theirs["volumeMounts"]} - {"/dev/shm"} <= mounts.keys()
    assert {one["name"] for one in theirs["env"]} <= {one["name"] for one in container["env"]}
    gpus = {key: value for key, value in theirs["resources"]["limits"].items() if key != "memory"}
    assert gpus.items() <= container["resources"]["limits"].items()
    assert pod["metadata"]["labels"]["halos-eval/network"] == "egress"
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_it_checks_what_the_values_name(render):
    release = render(LAB)
    _, worker = doctor(release, "worker")
    _, judge = doctor(release, "judge")
    command, *words = worker["args"]
    assert command == "doctor"
    assert words.pop() == "--hub"
    options = list(zip(words[::2], words[1::2], strict=True))
    assert {name.removeprefix("--") for name, _ in options} < DoctorConfig.model_fields.keys()
    assert options == [
        ("--store", "s3://bucket/halos-eval"),
        ("--gpus", "1"),
        ("--checkpoints", "/checkpoints"),
        ("--writable", "/cache"),
        ("--writable", "/outbox"),
        ("--writable", "/compile"),
    ]
    assert judge["args"] == ["doctor", "--store", "s3://bucket/halos-eval", "--judge", "--sandbox"]


def test_it_has_what_the_profile_overrides(render):
    """Otherwise OpenShift would refuse it, and it would reach nothing behind a proxy."""
    overrides = yaml.safe_load((ROOT / "examples" / "overrides.yaml").read_text())["profiles"]["spot"]
    release = render(merged(LAB, {"profiles": {"default": overrides}}))
    (pod, container), expected = doctor(release, "worker"), stage(release, "worker")
    [theirs] = expected["spec"]["containers"]
    kubernetes_validate.validate(pod, VERSION, strict=True)
    for key in ("securityContext", "affinity"):
        assert pod["spec"][key] == expected["spec"][key]
    assert {one["name"] for one in container["env"]} == {one["name"] for one in theirs["env"]} | OTHERS
    assert {"name": "ca", "mountPath": "/etc/lab-ca", "readOnly": True} in container["volumeMounts"]
    assert {"name": "ca", "configMap": {"name": "lab-ca"}} in pod["spec"]["volumes"]


@pytest.mark.parametrize("order", [1, -1])
def test_what_a_judges_server_overrides_is_not_checked(render, order):
    """The container `server` is another one than that of the stages, wherever the list has it."""
    containers = [{"name": "base", "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.org:3128"}]},
                  {"name": "server", "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}]}]  # fmt: skip
    overrides = {"podOverrides": {"spec": {"containers": containers[::order]}}}
    _, container = doctor(render(merged(LAB, {"profiles": {"default": overrides}})), "worker")
    names = [one["name"] for one in container["env"]]
    assert "HTTPS_PROXY" in names
    assert "VLLM_LOGGING_LEVEL" not in names


def test_the_sandbox_is_checked_where_code_is_scored(render):
    """On nodes of the same kind, with the same profile of seccomp and the same runtime."""
    profile = {"nodeSelector": {"pool": "cpu"}, "runtimeClassName": "kata"}
    release = render(merged(LAB, {"profiles": {"cpu": profile}}))
    pod, container = doctor(release, "judge")
    assert "--sandbox" in container["args"]
    job = next(job for job in jobs("cpu") if job.image == "judge").model_copy(update={"outbox": "a/b"})
    scored = manifest(job, release.cluster.kubernetes, release.cluster.gpu_profile("cpu"), "manual")
    for key in ("nodeSelector", "runtimeClassName", "securityContext"):
        assert pod["spec"][key] == scored["spec"][key]


def test_without_a_key_no_judge_is_checked(render):
    kubernetes = {**LAB["kubernetes"], "secrets": {}}
    _, judge = doctor(render(LAB | {"kubernetes": kubernetes}), "judge")
    assert judge["args"] == ["doctor", "--store", "s3://bucket/halos-eval", "--sandbox"]


def test_without_a_store_there_is_nothing_to_check(render):
    assert render(scenario("minimal")).names("Pod") == []
