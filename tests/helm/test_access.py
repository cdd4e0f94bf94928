"""Permissions of Airflow on pods, and of pods on the network."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from halos_eval.orchestration.doctor import QUEUE_RIGHTS, RIGHTS
from halos_eval.orchestration.pod_spec import manifest
from tests.helm.release import SCENARIOS, scenario
from tests.helm.test_cluster_file import jobs

DNS = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
HTTPS = [{"protocol": "TCP", "port": 443}]
WITH_POLICIES = [name for name in SCENARIOS if name != "existing"]
AIRFLOW = ["airflow-scheduler", "airflow-worker", "airflow-triggerer"]


QUEUES = [
    {"apiGroups": ["kueue.x-k8s.io"], "resources": ["localqueues"], "verbs": ["get"]},
    {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list"]},
]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_role_has_the_least_permissions_of_the_operator(render, name):
    release = render(scenario(name))
    assert release.names("ClusterRole") == []
    assert release.get("Role", "halos-eval-launcher")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "delete", "get", "list", "patch"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get"]},
        *(QUEUES if name == "gpu" else []),
    ]


def test_airflow_asks_for_the_rights_that_the_role_gives(render):
    for rights, name in ((RIGHTS, "minimal"), (RIGHTS | QUEUE_RIGHTS, "gpu")):
        rules = render(scenario(name)).get("Role", "halos-eval-launcher")["rules"]
        given = {
            (group, resource, verb)
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        asked = {
            (group, "/".join(filter(None, (resource, subresource))), verb)
            for (group, resource, subresource), verbs in rights.items()
            for verb in verbs
        }
        assert asked == given


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
    assert "annotations" in release.get("ServiceAccount", cluster.kubernetes.account("gpu"))["metadata"]


def test_each_class_of_pods_has_an_account(render):
    own = {"fetch": {"annotations": {"role": "hub"}}, "judge": {"annotations": {"role": "bedrock"}}}
    release = render(scenario("minimal") | {"serviceAccount": {"annotations": {"role": "store"}} | own})
    accounts = {}
    for job, pod in pods(release):
        account = release.get("ServiceAccount", pod["spec"]["serviceAccountName"])
        accounts[job.title] = account["metadata"].get("annotations")
        assert pod["spec"]["automountServiceAccountToken"] is False
    store, hub, bedrock = ({"role": role} for role in ("store", "hub", "bedrock"))
    assert accounts == {
        "fetch": hub, "sample": store, "gsm8k_cot": store, "judge": bedrock, "summarize": bedrock, "humaneval": None,
    }  # fmt: skip


def test_accounts_that_exist_are_used_by_class(render):
    kubernetes = scenario("minimal")["kubernetes"]
    release = render(
        {"kubernetes": kubernetes | {"serviceAccountName": "mine", "serviceAccounts": {"judge": "bedrock"}}}
    )
    assert release.names("ServiceAccount") == ["halos-eval-code"]
    found = {job.title: pod["spec"]["serviceAccountName"] for job, pod in pods(release)}
    assert (found["sample"], found["judge"], found["humaneval"]) == ("mine", "bedrock", "halos-eval-code")


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
    rules = render(scenario("minimal")).get("NetworkPolicy", "halos-eval-egress-gpu")["spec"]["egress"]
    assert reached(rules[1], address) is allows


def test_private_addresses_can_be_allowed(render):
    release = render(scenario("minimal") | {"networkPolicies": {"privateRanges": ["10.0.0.0/8"]}})
    rules = release.get("NetworkPolicy", "halos-eval-egress-gpu")["spec"]["egress"]
    assert reached(rules[1], "192.168.1.5")
    assert not reached(rules[1], "10.96.0.1")


@pytest.mark.parametrize(
    ("identity", "address", "port"),
    [("eks-pod-identity", "169.254.170.23", 80), ("gke", "169.254.169.252", 988), ("gke", "169.254.169.254", 80)],
)
def test_workload_identity_is_reached_by_all_but_a_models_code(render, identity, address, port):
    release = render(scenario("minimal") | {"networkPolicies": {"identity": identity}})
    for job, pod in pods(release):
        more = allowed(release, pod, "Egress")[2:]
        ports = [one["port"] for rule in more if reached(rule, address) for one in rule["ports"]]
        assert (port in ports) == (not job.outbox), job.title
        assert not [rule for rule in more if reached(rule, "10.96.0.1")]


def test_a_rule_can_be_for_one_class_only(render):
    rule = {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"protocol": "TCP", "port": 8000}]}
    release = render(scenario("minimal") | {"networkPolicies": {"extraEgressOf": {"judge": [rule]}}})
    reach = {job.title for job, pod in pods(release) if rule in allowed(release, pod, "Egress")}
    assert reach == {"judge", "summarize"}


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
