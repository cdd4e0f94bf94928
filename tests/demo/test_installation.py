"""The demo's Airflow, checkpoints and suite, with doubles of their programs that succeed or fail."""

from __future__ import annotations

import json
import sys

import pytest

from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.demo import installation
from halos_eval.demo.checkpoints import INTACT
from halos_eval.errors import EvaluationFailed
from halos_eval.processes import NO_REPORTS
from tests.doubles import make_checkpoint


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of an installation."""
    for name in ("logs", "checkpoints", "suites", "environments"):
        monkeypatch.setattr(installation, name.upper(), tmp_path / name)
    make_checkpoint(tmp_path / "checkpoints" / INTACT / "FINAL")
    return tmp_path


@pytest.fixture
def program(root):
    """``program(name, text)`` writes a Python program to the environment ``worker``."""

    def write(name, text):
        path = root / "environments" / "worker" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)

    return write


def airflow(text):
    """Return a double of ``installation.airflow`` that runs the Python program ``text``."""
    return lambda *words: [sys.executable, "-c", text, *words]


def test_pools_are_made_with_the_database(root, monkeypatch):
    calls = root / "calls"
    text = f"import os, sys; open({str(calls)!r}, 'a').write(os.environ['AIRFLOW_HOME'] + ' '.join(sys.argv) + chr(10))"
    monkeypatch.setattr(installation, "airflow", airflow(text))
    installation.migrate({"AIRFLOW_HOME": "/home"})
    pools = root / "logs" / "pools.json"
    assert calls.read_text().splitlines() == ["/home-c db migrate", f"/home-c pools import {pools}"]
    assert json.loads(pools.read_text()) == load_cluster().pools.document()


def test_an_error_of_the_database_is_reported(root, monkeypatch):
    monkeypatch.setattr(installation, "airflow", airflow("raise OSError('disk full')"))
    with pytest.raises(EvaluationFailed) as failed:
        installation.migrate({})
    log = root / "logs" / "database.log"
    assert str(failed.value) == f"making Airflow's database ended with code 1: OSError: disk full (log: {log})"


def test_an_error_of_the_builder_is_reported(program):
    program("python", "raise RuntimeError('no weights')")
    with pytest.raises(EvaluationFailed, match=r"making the demo's checkpoints .*: RuntimeError: no weights \(log: "):
        installation.make_checkpoints()


def test_no_process_of_the_demo_reports_its_use(root):
    assert NO_REPORTS.items() <= installation.airflow_environment().items()


def test_the_suite_is_judged_by_the_demos_own_checkpoint(root):
    path = installation.make_suite()
    written, suite = path.stat().st_mtime_ns, load_suite(str(path))
    assert suite.name == "demo"
    judge = suite.alpaca_eval.judge
    assert judge.model == str(root / "checkpoints" / INTACT / "FINAL")
    assert suite.tasks == load_suite("demo").tasks
    installation.make_suite()
    assert path.stat().st_mtime_ns == written
