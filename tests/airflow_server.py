"""A running Airflow for tests: ``airflow standalone`` in a process group of its own, and a client of its REST API."""

from __future__ import annotations

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

ROOT = Path(__file__).parents[1]
DONE = {"success", "failed", "upstream_failed", "skipped"}


class Airflow:
    """A client of Airflow's REST API."""

    def __init__(self, port, store):
        self.url, self.store = f"http://127.0.0.1:{port}", store

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + "/api/v2" + path, data, {"Content-Type": "application/json"}, method=method)
        with urlopen(request, timeout=120) as reply:  # its small database has one writer at a time
            return json.load(reply)

    def trigger(self, dag="evaluate_checkpoint", **conf):
        """Trigger a run; its id."""
        return self.call("POST", f"/dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]

    def instances(self, run_id, dag="evaluate_checkpoint"):
        """The task instances of a run."""
        path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances?limit=50"
        return self.call("GET", path)["task_instances"]

    def states(self, run_id, dag="evaluate_checkpoint"):
        """States by task and what the map index stands for."""
        return {
            (one["task_id"], one["rendered_map_index"] or one["map_index"]): one["state"]
            for one in self.instances(run_id, dag)
        }

    def state(self, run_id, dag="evaluate_checkpoint"):
        return self.call("GET", f"/dags/{dag}/dagRuns/{run_id}")["state"]

    def log(self, run_id, task, map_index=-1, attempt=1, dag="evaluate_checkpoint"):
        """The log of one try of a task, as text."""
        path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}/logs/{attempt}"
        content = self.call("GET", f"{path}?map_index={map_index}&full_content=true")["content"]
        return "\n".join(json.dumps(line, ensure_ascii=False) for line in content)

    def finish(self, run_id, seconds=600, dag="evaluate_checkpoint"):
        """Wait for the end of a run; its state and those of its tasks."""
        wait_for(lambda: self.state(run_id, dag) in DONE, seconds, lambda: self.states(run_id, dag))
        return self.state(run_id, dag), self.states(run_id, dag)


def wait_for(condition, seconds=180, words=lambda: "", every=0.5):
    """Return what ``condition`` gives once that is true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not after {seconds} s: {words()}"
        time.sleep(every)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def airflow_environment(environments, folder, port, **more):
    """The variables of an Airflow with its home below ``folder``."""
    return {
        "PATH": f"{environments / 'airflow' / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",  # tasks at a time: two processors have enough to do with them
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        # ports of their own for the scheduler's and triggerer's log servers
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        "HALOS_EVAL_ENVIRONMENTS": str(environments),
        **more,
    }


def migrate(environment):
    """Make the database and the pools, as the README tells."""
    programs = ROOT / ".venv" / "airflow" / "bin"
    pools = Path(environment["AIRFLOW_HOME"]) / "pools.json"

    def run(program, *words):
        command = [programs / program, *words]
        return subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300).stdout

    run("airflow", "db", "migrate")
    pools.write_bytes(run("halos-eval", "pools"))
    run("airflow", "pools", "import", pools)


@contextmanager
def standalone(environment, port):
    """``airflow standalone`` until the context ends; gives its process, whose group holds all that it has started."""
    log = Path(environment["AIRFLOW_HOME"]) / "standalone.log"
    with log.open("a") as file:
        process = subprocess.Popen(
            [ROOT / ".venv" / "airflow" / "bin" / "airflow", "standalone"],
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_for(lambda: _is_up(process, port, log), 300, lambda: log.read_text()[-3000:])
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(timeout=10)  # it often takes longer than anybody needs
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _is_up(process, port, log):
    assert process.poll() is None, log.read_text()[-3000:]
    return is_up(port)


def is_up(port):
    """Whether the API server answers, and the DAG was read."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/api/v2/dags/evaluate_checkpoint", timeout=5):
            return True
    except HTTPError as error:
        error.close()
    except OSError:
        pass
    return False
