"""Material of the judge's tests: outputs and references made from the published annotations in ../shared."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.airflow_server import wait_for
from tests.conftest import ROOT, Commands
from tests.forkserver import Fork


def write(path: Path, rows: list[dict]) -> Path:
    """``rows`` as a JSON file."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reference_rows(shared: Path) -> list[dict]:
    """AlpacaEval's 805 reference outputs."""
    path = shared / "hub" / "data" / "datasets" / "tatsu-lab" / "alpaca_eval" / "alpaca_eval_gpt4_baseline.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def output_rows(shared: Path):
    """``output_rows(model)``: the outputs of a published model, as ``halos-eval sample`` writes them."""

    def read(model: str) -> list[dict]:
        with gzip.open(shared / "judge" / "data" / f"{model}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [{"instruction": row["instruction"], "output": row["output"], "generator": model} for row in rows]

    return read


@pytest.fixture
def outputs(output_rows, tmp_path: Path) -> Path:
    """The 805 outputs of alpaca-7b."""
    return write(tmp_path / "alpaca-7b.json", output_rows("alpaca-7b"))


@pytest.fixture
def few(output_rows, reference_rows: list[dict], tmp_path: Path) -> tuple[str, ...]:
    """Words of a judge command on the first twelve pairs alone."""
    outputs = write(tmp_path / "few.json", output_rows("alpaca-7b")[:12])
    reference = write(tmp_path / "few-reference.json", reference_rows[:12])
    return ("judge", str(outputs), f"--reference={reference}", "--annotator=gpt-4.1")


class ForkedCommands(Commands):
    """Runs commands of the environment `worker` in forks of a process that has imported vLLM."""

    def __init__(self, commands: Commands, socket: Path) -> None:
        super().__init__(commands.environments, commands.home, commands.variables["HF_ENDPOINT"])
        self._socket = socket

    def __call__(self, environment, *argv, env=None):
        """Run to the end."""
        with self.started(environment, *argv, env=env) as process:
            code = process.wait()
        return subprocess.CompletedProcess(argv, code, process.out.read_text(), process.log.read_text())

    @contextmanager
    def started(self, environment, *argv, env=None):
        """Start in a process group of its own, with ``.out`` and ``.log`` the files of its outputs."""
        assert environment == "worker"
        self._number += 1
        out, log = (self.home / f"forked-{self._number}.{name}" for name in ("out", "log"))
        process = Fork(self._socket, [*map(str, argv)], self.variables | (env or {}), self.home, out, log)
        process.out, process.log = out, log
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="session")
def fork(run: Commands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    """Like ``run``, for what imports vLLM or lm_eval and reads the hub as ``run`` does: the imports are paid once."""
    folder = tmp_path_factory.mktemp("forks")
    words = [run.environments / "worker" / "bin" / "python", ROOT / "tests" / "forkserver.py", folder / "socket"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(words, env=run.variables | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
    try:
        wait_for((folder / "socket").exists, 300, (folder / "log").read_text)
        yield ForkedCommands(run, folder / "socket")
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def tiny(environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and a ChatML template, for where its answers do not matter."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny" / "FINAL"
    words = [environments / "worker" / "bin" / "python", ROOT / "tests" / "tiny_model.py", folder]
    subprocess.run(words, check=True, capture_output=True)
    return folder
