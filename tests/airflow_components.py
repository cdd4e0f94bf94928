"""Airflow's four components as processes that can be killed one by one, and that are started again as on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.airflow_server import ROOT, is_up, wait_for

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
SECRET = "0123456789abcdef" * 4
SHARED = {
    "AIRFLOW__CORE__FERNET_KEY": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    "AIRFLOW__API__SECRET_KEY": SECRET,
    "AIRFLOW__API_AUTH__JWT_SECRET": SECRET,
}
"""What all components must know of each other."""


class Components:
    """The running components."""

    def __init__(self, environment):
        self.environment, self.processes = environment | SHARED, {}
        self.log = Path(environment["AIRFLOW_HOME"]) / "components.log"
        for name in COMPONENTS:
            self.start(name)

    def start(self, name):
        with self.log.open("a") as file:
            words = ["setpriv", "--pdeathsig", "KILL", ROOT / ".venv" / "airflow" / "bin" / "airflow", name]
            self.processes[name] = subprocess.Popen(
                words, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )

    def kill(self, name):
        """Kill a component with all that it has started, as the kernel ends a container."""
        process = self.processes[name]
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            started = psutil.Process(process.pid).children(recursive=True)  # tasks have groups of their own
            os.killpg(process.pid, signal.SIGKILL)
            for one in started:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()

    def end(self):
        for name in COMPONENTS:
            self.kill(name)


@contextmanager
def components(environment, port):
    """Airflow until the context ends."""
    running = Components(environment)
    try:
        wait_for(lambda: is_up(port), 300, lambda: running.log.read_text()[-3000:])
        yield running
    finally:
        running.end()
