"""values.schema.json: it is closed and documented, and agrees with the code."""

from __future__ import annotations

import copy
import json

import pytest
import yaml
from helm_python import HelmError, HelmValuesError

from halos_eval.config.cluster import Cluster
from halos_eval.config.policy import EvaluationPolicy
from tests.helm.release import CHART, scenario

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
MINIMAL = scenario("minimal")


def changed(path, value):
    """Return the minimal values with one change: ``changed("pools.gpu", 0)``."""
    values = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pool", {"gpu": 1}),
        ("pools.gpus", 1),
        ("pools.gpu", 0),
        ("pools.gpu", "8"),
        ("profiles.default.gpu", 1),
        ("profiles.default.cpu", 4),
        ("profiles.default.nodeSelector", ["gpu"]),
        ("profiles.default.queue", "Not A Name"),
        ("profiles.large.volumes", {"scratch": {"path": "/scratch"}}),
        ("kubernetes.namespace", "elsewhere"),
        ("kubernetes.imagePullPolicy", "Sometimes"),
        ("kubernetes.images.airflow", "registry.example.org/airflow:1"),
        ("kubernetes.volumes", {"scratch": {"mountPath": "scratch", "emptyDir": "1Gi"}}),
        ("kubernetes.priorityClasses", {"urgent": "high"}),
        ("claims.scratch", {"enabled": True}),
        ("claims.cache.size", "a lot"),
        ("claims.cache.accessModes", ["ReadWriteEverywhere"]),
        ("suites", {"mine.yaml": {"tasks": {}}}),
        ("suites", {"../mine.yaml": ""}),
        ("policy", {"rules": [{"suite": "halos"}]}),
        ("policy.limits", {"night": {"gpu_hours": -1}}),
        ("airflow.serviceAccounts", "airflow-scheduler"),
        ("externalSecrets.secretStoreRef.kind", "Vault"),
        ("externalSecrets.secrets", {"openai": {"key": "sk-plain"}}),
        ("networkPolicies.extraEgress", [{"from": []}]),
        ("resourceQuota.hard", {"pods": -1}),
        ("priorityClasses.values.manual", "high"),
        ("localQueue.name", "Evaluation"),
    ],
)
def test_a_mistake_is_rejected(render, path, value):
    with pytest.raises(HelmValuesError):
        render(changed(path, value))


def test_images_are_required(render):
    with pytest.raises(HelmValuesError, match="images"):
        render({})


@pytest.mark.parametrize(
    "plain", ["sk-plain", {"value": "sk-plain"}, {"name": "openai", "key": "k", "value": "sk-plain"}]
)
def test_a_secret_is_a_reference(render, plain):
    with pytest.raises(HelmValuesError):
        render(changed("kubernetes.secrets", {"OPENAI_API_KEY": plain}))


@pytest.mark.parametrize(
    ("path", "value", "remedy"),
    [
        ("localQueue.create", True, "clusterQueue"),
        ("externalSecrets.secrets", {"openai": {"api-key": {"key": "lab/openai"}}}, "secretStoreRef"),
        ("kubernetes.volumes", {"cache": {"mountPath": "/cache", "emptyDir": "1Gi"}}, "claims.cache.enabled=false"),
    ],
)
def test_missing_and_duplicate_values_are_named(render, path, value, remedy):
    with pytest.raises(HelmError, match=remedy):
        render(changed(path, value))


def nodes(node, path="$"):
    """Yield every schema in the schema, with its path."""
    yield path, node
    for word in ("properties", "$defs"):
        for name, child in node.get(word, {}).items():
            yield from nodes(child, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(node.get(word), dict):
            yield from nodes(node[word], f"{path}[{word}]")


def test_every_value_is_described():
    properties = [
        (f"{path}.{name}", child)
        for path, node in nodes(SCHEMA)
        for word in ("properties", "$defs")
        for name, child in node.get(word, {}).items()
    ]
    assert [path for path, child in properties if not child.get("description", "").endswith((".", "..."))] == []
    assert len(properties) > 80


def test_every_object_is_closed():
    fragments = {
        "$.global",
        "$.EgressRule.to[items]",
        "$.EgressRule.ports[items]",
    }
    fragments |= {"$.Profile.tolerations[items]", "$.Profile.podOverrides"}
    opened = {
        path for path, node in nodes(SCHEMA)
        if node.get("type") == "object" and node.get("additionalProperties", True) is True
    }  # fmt: skip
    assert opened == fragments


def test_the_defaults_are_all_the_values_there_are():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) == set(SCHEMA["properties"]) - {"global"}
    for name in (
        "claims",
        "airflow",
        "launcher",
        "networkPolicies",
        "priorityClasses",
        "localQueue",
        "externalSecrets",
    ):
        assert set(values[name]) == set(SCHEMA["properties"][name]["properties"]), name


def without_titles(node):
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if key != "title" or not isinstance(value, str)}
        return {key: without_titles(value) for key, value in kept.items()}
    return [without_titles(value) for value in node] if isinstance(node, list) else node


def test_the_definitions_are_those_of_the_code():
    """The definitions come from the models of the two files. After a change there, copy the printed text to $defs."""
    expected = without_titles(Cluster.model_json_schema()["$defs"])
    kubernetes = expected["Kubernetes"]
    del kubernetes["properties"]["namespace"]  # it is the release's
    kubernetes["required"] = ["images"]  # the account is the chart's by default
    policy = without_titles(EvaluationPolicy.model_json_schema())
    expected |= policy.pop("$defs") | {"EvaluationPolicy": policy}
    for name, definition in expected.items():
        assert SCHEMA["$defs"][name] == definition, f'"{name}": {json.dumps(definition, indent=2)}'
