"""The chart as a whole: it lints, it renders, and Kubernetes accepts the objects."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import helm_python
import kubernetes_validate
import pytest
import yaml

from tests.helm.release import CHART, SCENARIOS, scenario

ROOT = Path(__file__).parents[2]
WARNING = 2
CURRENT = ("1.34", kubernetes_validate.latest_version())
CUSTOM = {"LocalQueue": "kueue.x-k8s.io/v1beta2", "ExternalSecret": "external-secrets.io/v1"}
# Objects that the notes name in commands.
NAMED = re.compile(r"(?:describe|get|create) (pvc|resourcequota|localqueue|externalsecret|configmap|token) (\S+)")
KINDS = {
    "pvc": "PersistentVolumeClaim", "resourcequota": "ResourceQuota", "localqueue": "LocalQueue",
    "externalsecret": "ExternalSecret", "configmap": "ConfigMap", "token": "ServiceAccount",
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_lints(name):
    report = helm_python.lint(CHART, scenario(name), strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] >= WARNING] == []


@pytest.mark.parametrize("version", CURRENT)
@pytest.mark.parametrize("name", SCENARIOS)
def test_kubernetes_accepts_every_object(render, name, version):
    release = render(scenario(name))
    for document in release.objects:
        if document["kind"] in CUSTOM:
            assert document["apiVersion"] == CUSTOM[document["kind"]]
        else:
            kubernetes_validate.validate(document, version, strict=True)
    assert len(release.objects) >= 5


def test_the_validator_would_notice():
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "date": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, CURRENT[0], strict=True)


def test_chart_package_and_images_are_of_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    for name in SCENARIOS:
        assert {image.rpartition(":")[2] for image in scenario(name)["kubernetes"]["images"].values()} == {version}


def test_what_a_release_is_made_of(render):
    release = render(scenario("minimal"))
    assert {(one["kind"], one["metadata"]["name"]) for one in release.objects} == {
        ("ConfigMap", "halos-eval-cluster"),
        ("ConfigMap", "halos-eval-suites"),
        ("NetworkPolicy", "halos-eval-default-deny"),
        ("NetworkPolicy", "halos-eval-egress-fetch"),
        ("NetworkPolicy", "halos-eval-egress-gpu"),
        ("NetworkPolicy", "halos-eval-egress-judge"),
        ("PersistentVolumeClaim", "halos-eval-cache"),
        ("PersistentVolumeClaim", "halos-eval-checkpoints"),
        ("PersistentVolumeClaim", "halos-eval-compile"),
        ("PersistentVolumeClaim", "halos-eval-outbox"),
        ("PriorityClass", "halos-eval-backfill"),
        ("PriorityClass", "halos-eval-manual"),
        ("PriorityClass", "halos-eval-nightly"),
        ("Role", "halos-eval-launcher"),
        ("RoleBinding", "halos-eval-launcher"),
        ("ServiceAccount", "halos-eval-code"),
        ("ServiceAccount", "halos-eval-fetch"),
        ("ServiceAccount", "halos-eval-gpu"),
        ("ServiceAccount", "halos-eval-judge"),
    }


def test_every_file_makes_one_kind_of_object_and_is_rendered_in_some_scenario(render):
    kinds = {}
    for name in SCENARIOS:
        for path, documents in render(scenario(name)).files.items():
            kinds.setdefault(path, set()).update(one["kind"] for one in documents)
    assert {path: kind for path, kind in kinds.items() if len(kind) != 1} == {}


@pytest.mark.parametrize("release_name", ["lab", "a-very-long-name-of-a-release-as-a-pipeline-makes-them"])
def test_names_follow_the_release_and_fit_a_label(render, release_name):
    objects = render(scenario("minimal"), name=release_name).objects
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    assert len(names) == len(objects)
    assert all(name.startswith(release_name[:40]) and len(name) <= 63 for _, name in names)


def test_a_release_can_be_removed_without_its_checkpoints(render):
    release = render(scenario("minimal"))
    for name in release.names("PersistentVolumeClaim"):
        claim = release.get("PersistentVolumeClaim", name)
        assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_secret_is_made_by_the_chart(render, name):
    assert render(scenario(name)).names("Secret") == []


def test_an_external_secret_makes_the_secret_that_the_pods_refer_to(render):
    release = render(scenario("external-secrets"))
    for variable, secret in release.cluster.kubernetes.secrets.items():
        spec = release.get("ExternalSecret", secret.name)["spec"]
        assert spec["target"] == {"name": secret.name}
        assert secret.key in [one["secretKey"] for one in spec["data"]], variable
        assert spec["secretStoreRef"] == {"kind": "SecretStore", "name": "vault"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_notes_name_objects_that_exist(render, name):
    release = render(scenario(name))
    existing = {claim.get("existingClaim") for claim in scenario(name).get("claims", {}).values()}
    named = NAMED.findall(release.notes)
    assert named
    for word, object_name in named:
        assert object_name in release.names(KINDS[word]) or object_name in existing, (word, object_name)
    assert "halos-eval-suites" in release.notes
    assert "evaluate_checkpoint" in release.notes
    assert "<no value>" not in release.notes


def test_the_notes_have_commands_for_airflows_namespace(render):
    assert "kubectl -n airflow exec deploy/airflow-api-server -- airflow dags trigger" in render(scenario("gpu")).notes
    outside = render(scenario("existing")).notes
    assert "\n  airflow dags trigger evaluate_checkpoint" in outside
    assert "create token halos-eval-launcher" in outside
    assert "There is no outbox" in outside
