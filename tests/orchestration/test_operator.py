"""What an existing Airflow must have is said when it reads the DAGs."""

from __future__ import annotations

import sys

import pytest

from halos_eval.errors import BadInput
from halos_eval.orchestration.operator import stage_operator

CLUSTER = """
pools: {gpu: 1, judge: 1}
profiles: {default: {}, cpu: {}}
kubernetes: {namespace: n, images: {worker: w, judge: j}, serviceAccountName: s}
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster file with pods, and a store."""
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    monkeypatch.setenv("HALOS_EVAL_STORE", "s3://evaluations")


def test_everything_is_there(cluster):
    assert stage_operator().__name__ == "PodStageOperator"


def test_an_airflow_without_a_store(cluster, monkeypatch):
    monkeypatch.delenv("HALOS_EVAL_STORE")
    with pytest.raises(BadInput, match=r"HALOS_EVAL_STORE is not set.*for all components of Airflow"):
        stage_operator()


def test_a_cluster_file_that_is_not_mounted(monkeypatch, tmp_path):
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "none.yaml"))
    with pytest.raises(BadInput, match=r"none\.yaml"):
        stage_operator()


def test_an_airflow_on_a_cluster_without_the_variable(monkeypatch, tmp_path):
    """The default is to run stages as processes."""
    monkeypatch.delenv("HALOS_EVAL_CLUSTER", raising=False)
    monkeypatch.setenv("HALOS_EVAL_ENVIRONMENTS", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="On a cluster set HALOS_EVAL_CLUSTER to the cluster file"):
        stage_operator()


def test_an_airflow_without_the_provider_of_pods(cluster, monkeypatch):
    monkeypatch.delitem(sys.modules, "halos_eval.orchestration.pods", raising=False)
    monkeypatch.setitem(sys.modules, "airflow.providers.cncf.kubernetes.operators.pod", None)
    with pytest.raises(BadInput, match="Install halos-eval with its extra airflow in Airflow's image"):
        stage_operator()
