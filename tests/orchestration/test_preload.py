"""What the scheduler imports for its tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.listeners.listener import get_listener_manager

from halos_eval.orchestration import preload

DAGS = Path(__file__).parents[2] / "dags"
CLUSTER = """
pools: {gpu: 1, judge: 1}
profiles: {default: {gpus: 1}, cpu: {}}
kubernetes: {namespace: night, images: {worker: worker, judge: judge}}
"""
# As in the scheduler: the listener is called, then a process for a task reads a DAG.
PARSE = """
import json, sys
from airflow.listeners.listener import get_listener_manager

class Job: ...

dags, sys.argv = sys.argv[1:], ["airflow", "scheduler"]
get_listener_manager().hook.on_starting(component=Job())
before = set(sys.modules)
from airflow.dag_processing.dagbag import BundleDagBag
for path in dags:
    bag = BundleDagBag(dag_folder=path, safe_mode=False, load_op_links=False, bundle_path=path, bundle_name="one")
    assert not bag.import_errors, bag.import_errors
print(json.dumps(sorted(set(sys.modules) - before)))
"""


class Job:
    """Stands in for Airflow's job, which has no type when the listener is called."""


def names(monkeypatch, command, component):
    found = []
    monkeypatch.setattr(sys, "argv", ["airflow", *command])
    monkeypatch.setattr(preload, "_import", found.append)
    monkeypatch.setattr(preload, "_import_operator", lambda: found.append("operator"))
    preload.on_starting(component)
    return found


def test_airflow_finds_the_listener():
    assert preload in get_listener_manager().pm.get_plugins()


@pytest.mark.parametrize("command", ["scheduler", "dag-processor"])
def test_components_that_fork_import_in_advance(monkeypatch, command):
    assert names(monkeypatch, [command], Job()) == [*preload.MODULES, "operator"]


@pytest.mark.parametrize(
    ("command", "component"), [(["triggerer"], Job()), (["api-server"], Job()), ([], Job()), (["scheduler"], object())]
)
def test_others_and_the_processes_of_tasks_do_not(monkeypatch, command, component):
    assert names(monkeypatch, command, component) == []


def test_a_module_that_cannot_be_imported_does_not_stop_the_scheduler(caplog):
    preload._import("halos_eval.no_such_module")
    assert "halos_eval.no_such_module was not imported in advance" in caplog.text


def test_an_operator_that_cannot_be_chosen_does_not_stop_the_scheduler(monkeypatch, tmp_path, caplog):
    (tmp_path / "cluster.yaml").write_text("pools: none\n")
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    preload._import_operator()
    assert "the operator of the stages was not imported in advance" in caplog.text


@pytest.mark.parametrize(("store", "imported"), [("s3://bucket/results", ["s3fs"]), ("file:///results", [])])
def test_the_client_of_the_store_is_imported_if_it_is_needed(monkeypatch, tmp_path, store, imported):
    found = []
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    monkeypatch.setenv("HALOS_EVAL_STORE", store)
    monkeypatch.setattr(preload, "_import", found.append)
    preload._import_operator()
    assert found == imported


def test_nothing_is_left_for_the_process_that_reads_a_dag(tmp_path):
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    files = [str(path) for path in sorted(DAGS.glob("*.py"))]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "HALOS_EVAL_CLUSTER": str(tmp_path / "cluster.yaml"),
        "HALOS_EVAL_STORE": f"file://{tmp_path}/store",
    }
    done = subprocess.run([sys.executable, "-c", PARSE, *files], env=environment, stdout=subprocess.PIPE, check=True)
    left = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in left if not name.startswith("unusual_prefix_")] == []  # Airflow's names of the DAG files
