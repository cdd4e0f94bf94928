"""The demo's Airflow, checkpoints and judge, with doubles of their programs that succeed or fail."""

from __future__ import annotations

import ast
import json
import sys
from contextlib import ExitStack
from urllib.request import urlopen

import pytest

from halos_eval.config.cluster import load_cluster
from halos_eval.demo import installation, judge_server
from halos_eval.demo.checkpoints import INTACT
from halos_eval.errors import EvaluationFailed
from halos_eval.processes import NO_REPORTS
from tests.doubles import make_checkpoint

# The log of vLLM if the memory is too small, shortened
DIES = """
import sys
print("ERROR [core.py:1] EngineCore failed to start.\\nTraceback (most recent call last):\\n  File 'core.py', line 1")
print("ValueError: No available memory for the cache blocks.\\nTraceback (most recent call last):\\n  File 'utils.py'")
print("RuntimeError: Engine core initialization failed. See root cause above.")
sys.exit(1)
"""
# Answers until somebody requests /end
SERVES = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
        if self.path == "/end":
            self.wfile.flush()
            print("MemoryError: no more", flush=True)
            os._exit(1)

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of an installation."""
    for name in ("logs", "checkpoints", "environments"):
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


def test_an_error_at_the_start_of_the_judge_is_reported_at_once(program, root):
    program("vllm", DIES)
    with ExitStack() as stack, pytest.raises(EvaluationFailed) as failed:
        installation.serve_judge(stack)
    assert str(failed.value) == (
        "the judge's server ended with code 1: ValueError: No available memory for the cache blocks. "
        f"(log: {root}/logs/judge.log)"
    )


def test_a_judge_that_does_not_answer(program, monkeypatch):
    monkeypatch.setattr(judge_server, "START_SECONDS", 1.0)
    program("vllm", "import time\ntime.sleep(600)")
    with (
        ExitStack() as stack,
        pytest.raises(EvaluationFailed, match=r"does not answer \(1 s\): it wrote nothing \(log"),
    ):
        installation.serve_judge(stack)


def test_a_judge_that_is_not_installed(root):
    with ExitStack() as stack, pytest.raises(EvaluationFailed, match="worker/bin/vllm: No such file or directory"):
        installation.serve_judge(stack)


def test_a_judge_serves_until_it_is_not_needed(program):
    program("vllm", SERVES)
    with ExitStack() as stack:
        judge = installation.serve_judge(stack)
        assert judge.environment == {"OPENAI_BASE_URL": judge.url, "OPENAI_API_KEY": "loopback"}
        with urlopen(judge.url, timeout=10) as reply:
            assert int(reply.read()) == judge.process.pid
        judge.check()
    assert judge.process.returncode is not None


def test_a_later_error_of_the_judge_is_reported(program):
    program("vllm", SERVES)
    with ExitStack() as stack:
        judge = installation.serve_judge(stack)
        with urlopen(judge.url.replace("/v1", "/end"), timeout=10) as reply:
            reply.read()
        judge.process.wait(timeout=30)
        with pytest.raises(EvaluationFailed, match="the judge's server ended with code 1: MemoryError: no more"):
            judge.check()


def test_no_process_of_the_demo_reports_its_use(root, program):
    assert NO_REPORTS.items() <= installation.airflow_environment().items()
    program("vllm", SERVES.replace("str(os.getpid())", "repr(dict(os.environ))"))
    with ExitStack() as stack, urlopen(f"{installation.serve_judge(stack).url}/models") as reply:
        assert NO_REPORTS.items() <= ast.literal_eval(reply.read().decode()).items()
