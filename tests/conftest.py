"""Real environments, servers and checkpoints for the tests marked ``real``. Nothing is started before a test asks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen
from uuid import uuid4

import pytest
from hypothesis import settings

from halos_eval.config.suite import Suite, load_suite
from tests.doubles.hub_data import write_hub_data

# How long an example takes says more of what else this machine does than of the code.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

ROOT = Path(__file__).parents[1]
DOUBLES = ROOT / "tests" / "doubles"
URL = re.compile(r"http://127\.0\.0\.1:\d+")
NO_HUB = "http://127.0.0.1:9"  # nothing listens there: a machine without a network
JUDGE_KEY = "sk-never-to-be-shown"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long each file took."""
    seconds: dict[str, float] = {}
    for report in (one for reports in terminalreporter.stats.values() for one in reports):
        if isinstance(report, pytest.TestReport):
            file = report.nodeid.partition("::")[0]
            seconds[file] = seconds.get(file, 0) + report.duration
    terminalreporter.section("seconds by file")
    for file in sorted(seconds, key=lambda name: -seconds[name]):
        if seconds[file] >= 1:
            terminalreporter.line(f"{seconds[file]:8.1f} {file}")


class Hub(NamedTuple):
    """A Hugging Face Hub on loopback."""

    endpoint: str
    root: Path
    log: Path


class Judge(NamedTuple):
    """An OpenAI-compatible judge on loopback."""

    base_url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to be judged by it."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": JUDGE_KEY}

    def stats(self) -> dict[str, int]:
        """How many requests of each outcome it has served, and the tokens that it would have billed."""
        with urlopen(self.base_url.removesuffix("/v1") + "/stats", timeout=10) as reply:
            return json.load(reply)

    def wait(self, answered: int, process: subprocess.Popen, seconds: float = 300) -> None:
        """Return once it has given so many answers to ``process``."""
        deadline = time.monotonic() + seconds
        while self.stats().get("answered", 0) < answered:
            assert process.poll() is None, process.log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"{self.stats()} after {seconds} s"
            time.sleep(0.05)


class S3(NamedTuple):
    """An S3 server on loopback."""

    environment: dict[str, str]
    bucket: str
    folder: Path


class Commands:
    """Runs ``halos-eval`` of an environment with a clean environment: own caches, the hub double, no keys."""

    def __init__(self, environments: Path, home: Path, endpoint: str) -> None:
        self.environments = environments
        self.home = home
        self.variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "HF_HOME": str(home / "huggingface"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        self._number = 0

    def __call__(
        self, environment: str, *argv: object, env: dict[str, str] | None = None, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            self._words(environment, argv),
            env=self.variables | (env or {}),
            cwd=self.home,
            capture_output=True,
            check=False,
            text=True,
            timeout=timeout,
        )

    @contextmanager
    def started(self, environment: str, *argv: object, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
        """Start in a process group of its own, with ``.log`` the file of both outputs; what is left is killed."""
        self._number += 1
        path = self.home / f"started-{self._number}.log"
        with path.open("w") as log:
            process = subprocess.Popen(
                self._words(environment, argv),
                env=self.variables | (env or {}),
                cwd=self.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.log = path
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _words(self, environment: str, argv: tuple[object, ...]) -> list[str]:
        return [str(self.environments / environment / "bin" / "halos-eval"), *map(str, argv)]


@contextmanager
def server(log: Path, *words: object, env: dict[str, str] | None = None) -> Iterator[str]:
    """Run a server that prints its address, until the context ends; gives http://127.0.0.1:PORT."""
    with log.open("w") as file:
        process = subprocess.Popen([str(word) for word in words], stdout=file, stderr=file, env=env)
    try:
        deadline = time.monotonic() + 120
        while not (found := URL.search(log.read_text())):
            assert process.poll() is None, f"{words[1]} ended at once:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{words[1]} did not start:\n{log.read_text()}"
            time.sleep(0.05)
        yield found[0]
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A store with nothing in it."""
    return f"file://{tmp_path}/store"


@pytest.fixture(scope="module")
def strict_bucket() -> Iterator[str]:
    """A bucket on an S3 server that enforces conditional writes."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        name = f"evaluations-{uuid4()}"  # the servers of a process share their buckets
        s3fs.S3FileSystem().mkdir(name)
        yield f"s3://{name}"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``suite(text)`` writes the suite ``own``, or that of another name, and reads it."""
    (tmp_path / "suites").mkdir()
    monkeypatch.setenv("HALOS_EVAL_SUITES", str(tmp_path / "suites"))

    def write(text: str, name: str = "own") -> Suite:
        (tmp_path / "suites" / f"{name}.yaml").write_text(text)
        return load_suite(name)

    return write


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published data beside the checkout."""
    folder = ROOT.parent / "shared"
    if not (folder / "hub" / "data").is_dir():
        pytest.skip("needs ../shared (published data, which may not be shipped with the tests)")
    return folder


@pytest.fixture(scope="session")
def environments() -> Path:
    """The folder with one virtual environment for each image."""
    folder = ROOT / ".venv"
    absent = [name for name in ("airflow", "worker", "judge") if not (folder / name / ".done").is_file()]
    if absent:
        pytest.skip(f"needs the environments {', '.join(absent)}: `make test` installs them")
    return folder


@pytest.fixture(scope="session")
def serve_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Serve a folder as a hub: ``serve_hub(root)`` gives a Hub, until the session ends."""
    with ExitStack() as stack:

        def serve(root: Path) -> Hub:
            log = tmp_path_factory.mktemp("hub") / "log"
            return Hub(stack.enter_context(server(log, *hub_command(root), "--verbose")), root, log)

        yield serve


def hub_command(root: Path, port: int = 0) -> tuple[object, ...]:
    """The command that serves ``root`` as a hub."""
    return sys.executable, DOUBLES / "hub.py", root, "--port", port


@pytest.fixture(scope="session")
def hub_data(tmp_path_factory: pytest.TempPathFactory):
    """Make a folder of a hub's data: ``hub_data()`` gives a new one that may be changed."""

    def make() -> Path:
        root = tmp_path_factory.mktemp("hub") / "root"
        write_hub_data(root)
        return root

    return make


@pytest.fixture(scope="session")
def hub(serve_hub, hub_data) -> Hub:
    """A hub with the small data of tests/doubles."""
    return serve_hub(hub_data())


@pytest.fixture(scope="session")
def published_hub(shared: Path, serve_hub, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A hub with a copy of the published data of ../shared."""
    root = tmp_path_factory.mktemp("published") / "root"
    data = shared / "hub" / "data"
    for file in filter(Path.is_file, data.rglob("*")):
        copy = root / file.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)  # without the modes: ../shared may be read-only
    return serve_hub(root)


@pytest.fixture
def serve_judge(tmp_path: Path) -> Iterator:
    """Start judges: ``serve_judge(latency=0.1, errors=0.1)`` gives a Judge, until the test ends."""
    with judges(tmp_path, DOUBLES / "judge.py") as start:
        yield start


@pytest.fixture
def published_judge(shared: Path, tmp_path: Path) -> Iterator[Judge]:
    """A judge that replays the published annotations of ../shared."""
    with judges(tmp_path, shared / "judge" / "replay.py") as start:
        yield start()


@contextmanager
def judges(folder: Path, program: Path) -> Iterator:
    """``start(latency=0.1)`` starts the judge ``program``, until the context ends."""
    with ExitStack() as stack:
        logs = (folder / f"judge-{number}.log" for number in count(1))

        def start(**options: float) -> Judge:
            words = (sys.executable, program, "--port", 0, *(f"--{name}={value}" for name, value in options.items()))
            return Judge(stack.enter_context(server(next(logs), *words)) + "/v1")

        yield start


@pytest.fixture(scope="session")
def checkpoints(environments: Path) -> Path:
    """The folder with the two demo checkpoints, made once per machine."""
    names = ("smollm2-135m", "smollm2-135m-rounded")
    made = ROOT / "var" / "checkpoints"
    if not all((made / name / "FINAL").is_dir() for name in names):
        source = ROOT / "halos_eval" / "demo" / "checkpoints.py"
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
        made = Path.home() / ".cache" / "halos-eval-tests" / digest
        python = environments / "worker" / "bin" / "python"
        subprocess.run([python, "-m", "halos_eval.demo.checkpoints", made], check=True, cwd=ROOT, timeout=600)
    return made


@pytest.fixture(scope="session")
def s3(environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server with one bucket: (environment variables, s3://BUCKET, the folder behind it)."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "root" / "evaluations").mkdir(parents=True)
    keys = {"AWS_ACCESS_KEY_ID": "test-access-key", "AWS_SECRET_ACCESS_KEY": "test-secret-key"}
    # Listings are not remembered for long: tests also write into the folder behind the bucket. With 0 s, rclone spins.
    words = [
        environments / "dev" / "bin" / "rclone",
        "serve",
        "s3",
        "--addr",
        "127.0.0.1:0",
        "--config",
        folder / "none",
    ]
    words += ["--vfs-cache-mode", "off", "--dir-cache-time", "100ms", "--auth-key", ",".join(keys.values())]
    with server(folder / "log", *words, folder / "root") as endpoint:
        variables = {**keys, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
        yield S3(variables, "s3://evaluations", folder / "root" / "evaluations")


@pytest.fixture(scope="session")
def run(environments: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """``run(environment, *argv, env=..., timeout=...)`` runs halos-eval; ``run.started(...)`` starts it."""
    return Commands(environments, tmp_path_factory.mktemp("home"), hub.endpoint)
