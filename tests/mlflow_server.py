"""A running MLflow for tests, which can be killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from pathlib import Path
from urllib.request import urlopen

from tests.airflow_server import free_port, wait_for
from tests.doubles import make_checkpoint


class Server:
    """An MLflow server over a database and a folder of artifacts; it can be killed and started again."""

    def __init__(self, environments, folder):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = folder / "mlflow.db"
        self._program = environments / "dev" / "bin" / "mlflow"
        self._process = None

    def start(self):
        words = ["server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1", "--no-serve-artifacts"]
        words += [f"--backend-store-uri=sqlite:///{self.database}", f"--default-artifact-root={self.folder}/artifacts"]
        environment = {
            "PATH": f"{self._program.parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [self._program, *words],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._is_up, 120, lambda: (self.folder / "log").read_text()[-3000:])

    def _is_up(self):
        try:
            with urlopen(f"{self.url}/health", timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    def kill(self):
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def execute(self, statement, *values):
        """Change the database beside the server: what its API does not let anybody do."""
        with sqlite3.connect(self.database, timeout=30) as connection:
            connection.execute(statement, values)
        connection.close()

    def register(self, name):
        """A checkpoint in the artifacts of a run, as version 1 of a new model: MLflow takes no other folder."""
        from mlflow import MlflowClient

        client = MlflowClient(self.url, self.url)
        run = client.create_run("0")
        make_checkpoint(Path(run.info.artifact_uri.removeprefix("file://")) / "FINAL")
        client.create_registered_model(name)
        client.create_model_version(name, f"runs:/{run.info.run_id}/FINAL", run_id=run.info.run_id)
