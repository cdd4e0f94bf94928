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


def test_an_airflow_without_the_provider_of_pods(tmp_path, monkeypatch):
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    monkeypatch.delitem(sys.modules, "halos_eval.orchestration.pods", raising=False)
    monkeypatch.setitem(sys.modules, "airflow.providers.cncf.kubernetes.operators.pod", None)
    with pytest.raises(BadInput, match="Install halos-eval with its extra airflow in Airflow's image"):
        stage_operator()
