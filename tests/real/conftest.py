"""Material of the judge's tests, and what starts the commands that import vLLM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import pytest

from tests.airflow_server import wait_for
from tests.conftest import ROOT, Commands
from tests.doubles.hub_data import output_rows, reference_rows
from tests.doubles.judge import preference
from tests.forkserver import Fork


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers, all files that start vLLM are for one of them: two at once are ten times slower."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("vllm" if item.get_closest_marker("vllm") else item.path.stem))


def write(path: Path, rows: list[dict]) -> Path:
    """``rows`` as a JSON file."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def failure(done) -> str:
    """The words of the one line that the command says of its failure."""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("halos-eval: ")]
    assert done.stderr.splitlines()[-1] == line
    return line.removeprefix("halos-eval: ")


def expected_win_rate(rows: Iterable[dict]) -> float:
    """The win rate at which the judge of tests/doubles puts these outputs: a draw counts a half."""
    references = {row["instruction"]: row["output"] for row in reference_rows()}
    return 100 * fmean(preference(row["instruction"], row["output"], references[row["instruction"]]) for row in rows)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A model's outputs for all of AlpacaEval's instructions on the hub's double."""
    return write(tmp_path / "outputs.json", output_rows())


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Words of a judge command on twelve pairs that are no draws."""
    folder = tmp_path_factory.mktemp("few")
    outputs = write(folder / "outputs.json", output_rows()[1:13])
    reference = write(folder / "reference.json", reference_rows()[1:13])
    return ("judge", str(outputs), f"--reference={reference}", "--judge=gpt-4.1")


class ForkedCommands(Commands):
    """Runs commands of one environment in forks of a process that has imported its large libraries."""

    def __init__(self, commands: Commands, environment: str, socket: Path) -> None:
        super().__init__(commands.environments, commands.home, commands.variables["HF_ENDPOINT"])
        self._environment = environment
        self._socket = socket

    def __call__(self, environment, *argv, env=None):
        """Run to the end."""
        with self.started(environment, *argv, env=env) as process:
            code = process.wait()
        return subprocess.CompletedProcess(argv, code, process.out.read_text(), process.log.read_text())

    @contextmanager
    def started(self, environment, *argv, env=None):
        """Start in a process group of its own, with ``.out`` and ``.log`` the files of its outputs."""
        assert environment == self._environment
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


@contextmanager
def forks(run: Commands, folder: Path, environment: str, *libraries: str) -> Iterator[ForkedCommands]:
    """Like ``run``, for what imports large libraries and reads the hub as ``run`` does: the imports are paid once."""
    python = run.environments / environment / "bin" / "python"
    words = ["setpriv", "--pdeathsig", "KILL", python, ROOT / "tests" / "forkserver.py", folder / "socket", *libraries]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(words, env=run.variables | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
    try:
        wait_for(lambda: (folder / "socket").exists() or server.poll() is not None, 300, (folder / "log").read_text)
        assert server.poll() is None, (folder / "log").read_text()
        yield ForkedCommands(run, environment, folder / "socket")
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def fork(run: Commands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    """Runs commands of the environment `worker`."""
    with forks(run, tmp_path_factory.mktemp("forks"), "worker") as commands:
        yield commands


@pytest.fixture(scope="session")
def tiny(environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and a ChatML template, for where its answers do not matter."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny" / "FINAL"
    words = [environments / "worker" / "bin" / "python", ROOT / "tests" / "tiny_model.py", folder]
    subprocess.run(words, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoints(tiny: Path) -> Path:
    """A folder of checkpoints with `tiny`, and `other` with the same weights."""
    folder = tiny.parents[1]
    shutil.copytree(tiny.parent, folder / "other", dirs_exist_ok=True)
    return folder
