"""``podOverrides`` of a profile: what labs set with it, and that it cannot weaken the protection of a pod."""

from __future__ import annotations

import copy
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from halos_eval.errors import BadInput
from tests.orchestration.test_pod_spec import PROFILE, VERSION, container, make, make_code_job

EXAMPLE = yaml.safe_load((Path(__file__).parents[2] / "examples" / "overrides.yaml").read_text())
OVERRIDES = EXAMPLE["profiles"]["spot"]["podOverrides"]
SCHEDULING = {"metadata": OVERRIDES["metadata"], "spec": {"affinity": OVERRIDES["spec"]["affinity"]}}


def made(overrides, job=None):
    before = copy.deepcopy(overrides)
    pod = make(job, profile=PROFILE | {"podOverrides": overrides})
    assert overrides == before
    return pod


def test_they_are_merged_into_the_pod():
    pod, plain = made(OVERRIDES), make()
    kubernetes_validate.validate(pod, VERSION, strict=True)
    assert pod["metadata"]["annotations"] == OVERRIDES["metadata"]["annotations"]
    assert pod["metadata"]["labels"] == plain["metadata"]["labels"]
    assert pod["spec"]["affinity"] == OVERRIDES["spec"]["affinity"]
    limits = container(plain)["resources"]["limits"]
    assert container(pod)["resources"]["limits"] == limits | {"cpu": "8"}
    assert container(pod)["env"] == container(plain)["env"] + OVERRIDES["spec"]["containers"][0]["env"]
    mounts = container(plain)["volumeMounts"]
    assert container(pod)["volumeMounts"] == [*mounts, {"name": "ca", "mountPath": "/etc/lab-ca", "readOnly": True}]
    volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
    assert volumes.keys() == {one["name"] for one in plain["spec"]["volumes"]} | {"ca"}


def test_a_volume_can_be_of_a_kind_that_profiles_do_not_have():
    template = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Gi"}}}}
    scratch = {"name": "tmp", "ephemeral": {"volumeClaimTemplate": template}}
    pod = made({"spec": {"volumes": [scratch | {"emptyDir": None}]}})
    kubernetes_validate.validate(pod, VERSION, strict=True)
    assert [one for one in pod["spec"]["volumes"] if one["name"] == "tmp"] == [scratch]


def test_openshift_may_choose_the_user():
    security = made(OVERRIDES)["spec"]["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & security.keys()
    assert security["runAsNonRoot"] is True


def test_a_variable_can_be_replaced():
    base = {"name": "base", "env": [{"name": "HF_ENDPOINT", "value": "https://mirror.example.org"}]}
    variables = [
        one for one in container(made({"spec": {"containers": [base]}}))["env"] if one["name"] == "HF_ENDPOINT"
    ]
    assert variables == base["env"]


def test_code_of_a_model_can_be_scheduled_like_all_else():
    pod, plain = made(SCHEDULING, make_code_job()), make(make_code_job())
    assert pod["spec"].pop("affinity") == OVERRIDES["spec"]["affinity"]
    assert pod["spec"] == plain["spec"]


def base(**fields):
    return {"spec": {"containers": [{"name": "base", **fields}]}}


WEAKER = {
    "token": {"spec": {"automountServiceAccountToken": True}},
    "host network": {"spec": {"hostNetwork": True}},
    "root": {"spec": {"securityContext": {"runAsUser": 0}}},
    "any user": {"spec": {"securityContext": {"runAsNonRoot": None}}},
    "no seccomp": {"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}},
    "no context": {"spec": {"securityContext": None}},
    "policy": {"metadata": {"labels": {"halos-eval/network": "all"}}},
    "sidecar": {"spec": {"containers": [{"name": "other", "image": "other"}]}},
    "init": {"spec": {"initContainers": [{"name": "other", "image": "other"}]}},
    "privileged": base(securityContext={"privileged": True}),
    "writable": base(securityContext={"readOnlyRootFilesystem": False}),
    "capabilities": base(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}),
    "command": base(command=["sh"]),
    "arguments": base(args=["judge"]),
    "container seccomp": base(securityContext={"seccompProfile": {"type": "Unconfined"}}),
}
MORE_FOR_CODE = {
    "secret": base(env=[{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "store", "key": "k"}}}]),
    "secrets": base(envFrom=[{"secretRef": {"name": "store"}}]),
    "volume": {"spec": {"volumes": [{"name": "keys", "secret": {"secretName": "store"}}]}},
    "mount": base(volumeMounts=[{"name": "outbox", "mountPath": "/all"}]),
    "account": {"spec": {"serviceAccountName": "stage"}},
}


@pytest.mark.parametrize("overrides", WEAKER.values(), ids=WEAKER)
def test_no_pod_gets_less_protection(overrides):
    with pytest.raises(BadInput, match="which protects the cluster"):
        made(overrides)


@pytest.mark.parametrize("overrides", MORE_FOR_CODE.values(), ids=MORE_FOR_CODE)
def test_code_of_a_model_gets_nothing_more(overrides):
    made(overrides)
    with pytest.raises(BadInput, match="of a model's code"):
        made(overrides, make_code_job())
