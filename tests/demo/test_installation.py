"""The demo's own Airflow: its database gets the pools of the cluster's file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from halos_eval.cluster import load_cluster
from halos_eval.demo import installation


def test_pools_are_made_with_the_database(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(installation, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(installation, "airflow", lambda *words: list(words))

    def run(words, *, env, stdout, stderr, check):
        started.append((words, env))
        assert check
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(installation.subprocess, "run", run)
    installation.migrate({"AIRFLOW_HOME": "/home"})
    migrated, imported = started
    assert migrated == (["db", "migrate"], {"AIRFLOW_HOME": "/home"})
    assert imported[0][:2] == ["pools", "import"]
    assert json.loads(Path(imported[0][2]).read_text()) == load_cluster().pools.document()
