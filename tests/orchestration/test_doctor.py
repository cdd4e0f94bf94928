"""The checks of Airflow's installation, with doubles of its database and of Kubernetes."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import yaml
from kubernetes.client import ApiException

from halos_eval.config.cluster import Pools, load_cluster
from halos_eval.errors import BadInput
from halos_eval.orchestration import doctor
from tests.orchestration.test_pods import CLUSTER

POOLS = Pools(gpu=8, judge=1)


@pytest.fixture
def pools(monkeypatch):
    """``pools(...)`` sets Airflow's pools: slots and include_deferred by name."""

    def pools(found):
        rows = [SimpleNamespace(pool=name, slots=slots, include_deferred=on) for name, (slots, on) in found.items()]

        @contextmanager
        def session():
            yield SimpleNamespace(query=lambda model: rows)

        monkeypatch.setattr("airflow.utils.session.create_session", session)

    return pools


def imported():
    return {name: (one["slots"], one["include_deferred"]) for name, one in POOLS.document().items()}


def test_pools_as_in_the_cluster_file(pools):
    pools(imported() | {"default_pool": (128, False)})
    assert "halos_eval_gpu: 8" in doctor.check_pools(POOLS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "halos_eval_gpu is missing; expected 8 slots with deferred tasks"),
        ((4, True), "halos_eval_gpu is 4 slots with deferred tasks; expected 8"),
        ((8, False), "halos_eval_gpu is 8 slots without deferred tasks; expected 8 slots with"),
    ],
)
def test_pools_that_differ(pools, change, words):
    found = {name: one for name, one in imported().items() if name != "halos_eval_gpu"}
    pools(found | ({"halos_eval_gpu": change} if change else {}))
    with pytest.raises(BadInput, match=words) as caught:
        doctor.check_pools(POOLS)
    assert "airflow pools import" in str(caught.value)


@pytest.fixture
def kubernetes(tmp_path, monkeypatch):
    """The cluster file's Kubernetes; ``denied`` has what the account may not do."""
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", "kubernetes://")
    denied, asked = set(), []

    class Reviews:
        def __init__(self, client):
            pass

        def create_self_subject_access_review(self, body):
            attributes = body["spec"]["resourceAttributes"]
            assert attributes["namespace"] == "halos"
            asked.append((attributes["verb"], attributes["resource"], attributes.get("subresource")))
            if "down" in denied:
                raise ApiException(status=503)
            return SimpleNamespace(status=SimpleNamespace(allowed=asked[-1] not in denied))

    class Core:
        def __init__(self, client):
            pass

        def read_namespaced_persistent_volume_claim(self, name, namespace):
            assert namespace == "halos"
            if name in denied:
                raise ApiException(status=404)
            return SimpleNamespace(status=SimpleNamespace(phase="Pending" if f"{name} pending" in denied else "Bound"))

    hook = "airflow.providers.cncf.kubernetes.hooks.kubernetes.KubernetesHook.get_conn"
    monkeypatch.setattr(hook, lambda self: None)
    monkeypatch.setattr("kubernetes.client.AuthorizationV1Api", Reviews)
    monkeypatch.setattr("kubernetes.client.CoreV1Api", Core)
    return SimpleNamespace(configuration=load_cluster().kubernetes, denied=denied, asked=asked)


def test_an_account_that_may_start_pods(kubernetes):
    assert doctor.check_permissions(kubernetes.configuration, []).endswith("may start pods in namespace halos")
    assert len(kubernetes.asked) == 9
    doctor.check_permissions(kubernetes.configuration, ["gpus"])
    assert ("list", "workloads", None) in kubernetes.asked


def test_an_account_without_the_role(kubernetes):
    kubernetes.denied |= {("create", "pods", None), ("get", "pods", "log")}
    with pytest.raises(BadInput, match=r"may not create pods, get pods/log in .*airflow\.serviceAccounts"):
        doctor.check_permissions(kubernetes.configuration, [])


def test_a_cluster_that_does_not_answer(kubernetes):
    kubernetes.denied.add("down")
    with pytest.raises(BadInput, match="Kubernetes does not answer"):
        doctor.check_permissions(kubernetes.configuration, [])


def test_claims_that_are_not_bound(kubernetes):
    assert doctor.check_claims("halos", {"cache", "models"}) == "cache, models: bound"
    kubernetes.denied |= {"cache", "models pending"}
    with pytest.raises(BadInput, match=r"cache is missing, models is Pending in namespace halos; .*ReadWriteMany"):
        doctor.check_claims("halos", {"cache", "models", "outbox"})


def test_every_check_has_a_line(kubernetes, pools, register, monkeypatch, capsys):
    register("a", 1)
    pools(imported())
    doctor.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].removeprefix("ok      ") for line in lines] == [
        "cluster file", "store", "checkpoints", "policy", "pools", "permissions", "claims",
    ]  # fmt: skip


def test_a_failure_is_the_exit_status(pools, register, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "none.yaml"))
    with pytest.raises(SystemExit, match="checks failed"):
        doctor.main()
    assert "FAILED  cluster file" in capsys.readouterr().out
