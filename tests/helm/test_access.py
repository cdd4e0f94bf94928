"""Permissions of Airflow on pods, and of pods on the network."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from halos_eval.orchestration.pod_spec import manifest
from tests.helm.release import SCENARIOS, scenario
from tests.helm.test_cluster_file import jobs

DNS = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
HTTPS = [{"protocol": "TCP", "port": 443}]
WITH_POLICIES = [name for name in SCENARIOS if name != "existing"]
AIRFLOW = ["airflow-scheduler", "airflow-worker", "airflow-triggerer"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_role_has_the_least_permissions_of_the_operator(render, name):
    release = render(scenario(name))
    assert release.names("ClusterRole") == []
    assert release.get("Role", "halos-eval-launcher")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "delete", "get", "list", "patch"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "watch"]},
    ]


@pytest.mark.parametrize(
    ("name", "accounts", "namespace"),
    [
        ("minimal", AIRFLOW, "evaluation"),
        ("gpu", AIRFLOW, "airflow"),
        ("existing", ["halos-eval-launcher"], "evaluation"),
        ("test-cluster", AIRFLOW, "evaluation"),
    ],
)
def test_only_airflow_has_the_role(render, name, accounts, namespace):
    binding = render(scenario(name)).get("RoleBinding", "halos-eval-launcher")
    assert binding["roleRef"]["name"] == "halos-eval-launcher"
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account, "namespace": namespace} for account in accounts
    ]


def test_without_accounts_there_is_no_binding(render):
    assert render(scenario("minimal") | {"airflow": {"serviceAccounts": []}}).names("RoleBinding") == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_account_of_the_chart_has_its_token_mounted(render, name):
    release = render(scenario(name))
    for account in release.names("ServiceAccount"):
        assert release.get("ServiceAccount", account)["automountServiceAccountToken"] is False


def test_a_model_s_code_gets_no_workload_identity(render):
    release = render(scenario("external-secrets"))
    cluster = release.cluster
    *_, code = jobs("default")
    pod = manifest(code, cluster.kubernetes, cluster.profiles["default"], "manual")
    account = release.get("ServiceAccount", pod["spec"]["serviceAccountName"])
    assert "annotations" not in account["metadata"]
    assert "annotations" in release.get("ServiceAccount", cluster.kubernetes.service_account_name)["metadata"]


def allowed(release, pod, direction):
    """Return the rules of all policies that select ``pod``; None if no policy restricts that direction."""
    labels = pod["metadata"]["labels"].items()
    policies = [release.get("NetworkPolicy", name)["spec"] for name in release.names("NetworkPolicy")]
    selecting = [one for one in policies if one["podSelector"]["matchLabels"].items() <= labels]
    restricting = [one for one in selecting if direction in one["policyTypes"]]
    return [rule for one in restricting for rule in one.get(direction.lower(), [])] if restricting else None


def pods(release):
    cluster = release.cluster
    for job in jobs("default"):
        yield job, manifest(job, cluster.kubernetes, cluster.profiles["default"], "manual")


@pytest.mark.parametrize("name", WITH_POLICIES)
def test_nothing_reaches_a_stage(render, name):
    release = render(scenario(name))
    assert [allowed(release, pod, "Ingress") for _, pod in pods(release)] == [[]] * 6


@pytest.mark.parametrize("name", WITH_POLICIES)
def test_model_written_code_reaches_nothing_and_other_stages_the_listed_ports(render, name):
    release = render(scenario(name))
    extra = scenario(name).get("networkPolicies", {}).get("extraEgress", [])
    for job, pod in pods(release):
        found = allowed(release, pod, "Egress")
        if job.outbox:
            assert found == [], job.title
        else:
            dns, https, *others = found
            assert (dns, https["ports"], others) == (DNS, HTTPS, extra), job.title


def reached(rule, address):
    """Return whether a rule of egress allows this address."""
    blocks = [one["ipBlock"] for one in rule["to"]]
    address = ip_address(address)
    return any(
        address in ip_network(block["cidr"]) and not any(address in ip_network(one) for one in block.get("except", []))
        for block in blocks
    )


@pytest.mark.parametrize(
    ("address", "allows"),
    [
        ("104.18.32.47", True),
        ("2606:4700::1", True),
        ("10.96.0.1", False),  # the API server
        ("169.254.169.254", False),  # the node's identity
        ("192.168.1.5", False),
        ("172.20.0.1", False),
        ("fd00::1", False),
    ],
)
def test_stages_reach_public_addresses_only(render, address, allows):
    rules = render(scenario("minimal")).get("NetworkPolicy", "halos-eval-egress")["spec"]["egress"]
    assert reached(rules[1], address) is allows


def test_private_addresses_can_be_allowed(render):
    release = render(scenario("minimal") | {"networkPolicies": {"privateRanges": ["10.0.0.0/8"]}})
    rules = release.get("NetworkPolicy", "halos-eval-egress")["spec"]["egress"]
    assert reached(rules[1], "192.168.1.5")
    assert not reached(rules[1], "10.96.0.1")


def test_other_pods_of_the_namespace_are_not_restricted(render):
    airflow = {"metadata": {"labels": {"tier": "airflow", "component": "scheduler", "release": "airflow"}}}
    assert allowed(render(scenario("minimal")), airflow, "Egress") is None


def test_policies_can_be_switched_off(render):
    assert render(scenario("existing")).names("NetworkPolicy") == []


def test_manual_runs_come_before_nightly_ones_and_those_before_backfills(render):
    release = render(scenario("minimal"))
    manual, nightly, backfill = (
        release.get("PriorityClass", f"halos-eval-{priority}") for priority in ("manual", "nightly", "backfill")
    )
    assert 0 >= manual["value"] > nightly["value"] > backfill["value"] >= -10
    assert {one["preemptionPolicy"] for one in (manual, nightly, backfill)} == {"PreemptLowerPriority"}
    assert not any(one.get("globalDefault") for one in (manual, nightly, backfill))
