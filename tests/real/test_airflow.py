"""``evaluate_checkpoint`` through a running scheduler, with real pods' commands as local processes."""

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas as pd
import pytest

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
SUITE = """
enforce_eager: true
gpu_memory_utilization: 0.2
harness: {max_model_len: 1024, dtype: float32}
tasks:
  demo_cloze: {}
  no_such_task: {}
"""
DONE = {"success", "failed", "upstream_failed", "skipped"}


class Airflow:
    """A client of Airflow's REST API."""

    def __init__(self, port, store, log):
        self.url, self.store, self.log = f"http://127.0.0.1:{port}", store, log

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + "/api/v2" + path, data, {"Content-Type": "application/json"}, method=method)
        with urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def trigger(self, **conf):
        body = {"logical_date": None, "conf": conf}
        return self.call("POST", "/dags/evaluate_checkpoint/dagRuns", body)["dag_run_id"]

    def states(self, run_id):
        found = self.call("GET", f"/dags/evaluate_checkpoint/dagRuns/{run_id}/taskInstances?limit=50")["task_instances"]
        return {(one["task_id"], one["rendered_map_index"] or one["map_index"]): one["state"] for one in found}

    def finish(self, run_id, seconds=240):
        """Wait for the end of a run; its state and those of its tasks."""
        deadline = time.monotonic() + seconds
        while (state := self.call("GET", f"/dags/evaluate_checkpoint/dagRuns/{run_id}")["state"]) not in DONE:
            assert time.monotonic() < deadline, self.states(run_id)
            time.sleep(1)
        return state, self.states(run_id)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def standalone(folder, environment, port):
    """``airflow standalone`` in a process group of its own, until the context ends."""
    log = folder / "airflow.log"
    program = ROOT / ".venv" / "airflow" / "bin" / "airflow"
    subprocess.run([program, "db", "migrate"], env=environment, check=True, capture_output=True, timeout=120)
    with log.open("w") as file:
        process = subprocess.Popen(
            [program, "standalone"], env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                with urlopen(f"http://127.0.0.1:{port}/api/v2/dags/evaluate_checkpoint", timeout=5):
                    break
            except HTTPError as error:
                error.close()
            except OSError:
                pass
            time.sleep(0.5)
        yield log
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def airflow(environments, checkpoints, tmp_path_factory):
    """A running Airflow with an empty store and one suite of its own."""
    folder = tmp_path_factory.mktemp("airflow")
    (folder / "suites").mkdir()
    (folder / "suites" / "half.yaml").write_text(SUITE)
    port = free_port()
    environment = {
        "PATH": f"{environments / 'airflow' / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "1",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        # ports of their own for the scheduler's and triggerer's log servers
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        "HALOS_EVAL_STORE": f"file://{folder / 'store'}",
        "HALOS_EVAL_CHECKPOINTS": str(checkpoints),
        "HALOS_EVAL_ENVIRONMENTS": str(environments),
        "HALOS_EVAL_SUITES": str(folder / "suites"),
    }
    with standalone(folder, environment, port) as log:
        yield Airflow(port, folder / "store", log)


def stages_running(airflow):
    """Processes of stages that write to this store."""
    found = subprocess.run(
        ["pgrep", "-f", f"halos-eval .*{airflow.store}"], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


def test_bad_input_fails_in_the_plan_and_nothing_is_run(airflow):
    state, tasks = airflow.finish(airflow.trigger(checkpoint="no-such-model", suite="demo"))
    assert state == "failed"
    assert tasks.pop(("plan", -1)) == "failed"
    assert set(tasks.values()) == {"upstream_failed"}
    assert not airflow.store.exists()


@pytest.mark.parametrize(
    "conf", [{"checkpoint": "../etc"}, {"checkpoint": "a; rm -rf /"}, {"checkpoint": "a", "suite": "{{ 1 }}"}]
)
def test_parameters_that_could_leave_their_place_are_refused(airflow, conf):
    with pytest.raises(HTTPError) as refused:
        airflow.trigger(**conf)
    assert refused.value.code in {400, 422}
    refused.value.close()


def test_one_failed_task_costs_its_own_cell_only(airflow):
    state, tasks = airflow.finish(airflow.trigger(checkpoint="smollm2-135m", suite="half"))
    assert state == "failed"
    assert tasks["harness", "demo_cloze"] == tasks["summarize", -1] == "success"
    assert tasks["harness", "no_such_task"] == tasks["verdict", -1] == "failed"
    (row,) = pd.read_csv(airflow.store / "reports" / "half" / "summary.csv").to_dict("records")
    assert row["model_name"] == "smollm2-135m"
    assert row["demo_cloze-acc"] > 0.3
    assert "avg" not in row
    assert row["status"].startswith("no_such_task: BadInput: there is no lm_eval task 'no_such_task'")
    record = next((airflow.store / "runs").rglob("record.json"))
    assert json.loads(record.read_text())["provenance"]["suite"] == "half"


def test_a_second_run_does_only_what_is_missing(airflow):
    before = {path: path.stat().st_mtime_ns for path in (airflow.store / "runs").rglob("record.json")}
    assert before
    _, tasks = airflow.finish(airflow.trigger(checkpoint="smollm2-135m", suite="half"))
    assert ("harness", "demo_cloze") not in tasks
    assert tasks["harness", "no_such_task"] == "failed"
    assert before == {path: path.stat().st_mtime_ns for path in (airflow.store / "runs").rglob("record.json")}


def test_a_task_marked_failed_leaves_no_process(airflow):
    run_id = airflow.trigger(checkpoint="smollm2-135m-rounded", suite="half", tasks=["demo_cloze"])
    deadline = time.monotonic() + 60
    while not stages_running(airflow):
        assert time.monotonic() < deadline, airflow.states(run_id)
        time.sleep(0.2)
    path = f"/dags/evaluate_checkpoint/dagRuns/{run_id}/taskInstances/harness/0"
    airflow.call("PATCH", path, {"new_state": "failed"})
    deadline = time.monotonic() + 60
    while stages_running(airflow):
        assert time.monotonic() < deadline, "the stage's process is still there"
        time.sleep(0.2)
    state, tasks = airflow.finish(run_id)
    assert state == "failed"
    assert tasks["verdict", -1] == "failed"
