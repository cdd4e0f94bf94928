"""Fixtures of the tests with Airflow. Its home folder is set before anything imports it."""

from __future__ import annotations

import atexit
import os
import tempfile
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from tests.doubles import isolate_airflow, make_checkpoint

atexit.register(isolate_airflow(tempfile.mkdtemp(prefix="airflow-")))

NOW = datetime.now(UTC)
POLICY = "{look_back_days: 3, message_after_hours: 2, rules: [{suites: [demo]}]}"


@pytest.fixture
def register(tmp_path, monkeypatch):
    """``register(name, days)`` makes a checkpoint that was registered that many days ago."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    monkeypatch.setenv("HALOS_EVAL_POLICY", str(tmp_path / "policy.yaml"))
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("HALOS_EVAL_STORE", f"file://{tmp_path}/store")

    def register(name, days):
        folder = make_checkpoint(tmp_path / "checkpoints" / name / "FINAL")
        then = (NOW - timedelta(days=days)).timestamp()
        for path in (*folder.iterdir(), folder):
            os.utime(path, (then, then))

    return register


@pytest.fixture
def context(monkeypatch):
    """``context(...)`` sets the context of a task and returns its task instance; ``pushed`` has its XComs."""
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time.comms import ErrorResponse

    from halos_eval.orchestration import find, report, turns

    def context(states=None, params=None, events=(), **run):
        pushed = {}

        def state(dag_id, run_id):
            if run_id not in (states or {}):
                raise AirflowRuntimeError(ErrorResponse())
            return states[run_id]

        exchange = SimpleNamespace(
            xcom_push=pushed.__setitem__,
            xcom_pull=lambda task_ids, key: pushed.get(key),
            get_dagrun_state=state,
            get_dr_count=lambda dag_id, run_ids: sum(run_id in (states or {}) for run_id in run_ids),
            pushed=pushed,
        )
        interval = {key: run.pop(key) for key in ("data_interval_start", "data_interval_end") if key in run}
        about = SimpleNamespace(
            **{"run_type": "manual", "run_id": "one", "start_date": NOW, "run_after": NOW, "partition_key": None} | run,
            consumed_asset_events=[SimpleNamespace(timestamp=then) for then in events],
        )
        given = {"ti": exchange, "dag_run": about, "params": params or {}, **interval}
        for module in (find, report, turns):
            monkeypatch.setattr(module, "get_current_context", lambda: given)
        return exchange

    return context
