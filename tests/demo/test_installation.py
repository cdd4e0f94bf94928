"""The demo's own Airflow, checkpoints and judge: programs that stand in for theirs, which do their work or die."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from urllib.request import urlopen

import pytest

from halos_eval.config.cluster import load_cluster
from halos_eval.demo import installation, judge_server
from halos_eval.demo.checkpoints import INTACT
from halos_eval.errors import EvaluationFailed
from tests.doubles import make_checkpoint

# What vLLM leaves where the memory does not suffice, in short
DIES = """
import sys
print("ERROR [core.py:1] EngineCore failed to start.\\nTraceback (most recent call last):\\n  File 'core.py', line 1")
print("ValueError: No available memory for the cache blocks.\\nTraceback (most recent call last):\\n  File 'utils.py'")
print("RuntimeError: Engine core initialization failed. See root cause above.")
sys.exit(1)
"""
# Answers as long as it is not asked for /end
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
def place(tmp_path, monkeypatch):
    """An installation in a folder of its own."""
    for name in ("logs", "checkpoints", "environments"):
        monkeypatch.setattr(installation, name.upper(), tmp_path / name)
    make_checkpoint(tmp_path / "checkpoints" / INTACT / "FINAL")
    return tmp_path


@pytest.fixture
def program(place):
    """``program(name, text)`` puts a Python program into the environment ``worker``."""

    def write(name, text):
        path = place / "environments" / "worker" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)

    return write


def airflow(text):
    """What stands in for ``installation.airflow``: a program in place of the command line."""
    return lambda *words: [sys.executable, "-c", text, *words]


def test_pools_are_made_with_the_database(place, monkeypatch):
    calls = place / "calls"
    text = f"import os, sys; open({str(calls)!r}, 'a').write(os.environ['AIRFLOW_HOME'] + ' '.join(sys.argv) + chr(10))"
    monkeypatch.setattr(installation, "airflow", airflow(text))
    installation.migrate({"AIRFLOW_HOME": "/home"})
    pools = place / "logs" / "pools.json"
    assert calls.read_text().splitlines() == ["/home-c db migrate", f"/home-c pools import {pools}"]
    assert json.loads(pools.read_text()) == load_cluster().pools.document()


def test_a_database_that_cannot_be_made_says_why(place, monkeypatch):
    monkeypatch.setattr(installation, "airflow", airflow("raise OSError('disk full')"))
    with pytest.raises(EvaluationFailed) as failed:
        installation.migrate({})
    log = place / "logs" / "database.log"
    assert str(failed.value) == f"making Airflow's database ended with code 1: OSError: disk full (log: {log})"


def test_checkpoints_that_cannot_be_made_say_why(program):
    program("python", "raise RuntimeError('no weights')")
    with pytest.raises(EvaluationFailed, match=r"making the demo's checkpoints .*: RuntimeError: no weights \(log: "):
        installation.make_checkpoints()


def test_a_judge_that_does_not_start_says_why_at_once(program, place):
    program("vllm", DIES)
    with ExitStack() as stack, pytest.raises(EvaluationFailed) as failed:
        installation.serve_judge(stack)
    assert str(failed.value) == (
        "the judge's server ended with code 1: ValueError: No available memory for the cache blocks. "
        f"(log: {place}/logs/judge.log)"
    )


def test_a_judge_that_does_not_answer(program, monkeypatch):
    monkeypatch.setattr(judge_server, "START_SECONDS", 1.0)
    program("vllm", "import time\ntime.sleep(600)")
    with (
        ExitStack() as stack,
        pytest.raises(EvaluationFailed, match=r"does not answer \(1 s\): it wrote nothing \(log"),
    ):
        installation.serve_judge(stack)


def test_a_judge_that_is_not_installed(place):
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


def test_a_judge_that_dies_later_says_why(program):
    program("vllm", SERVES)
    with ExitStack() as stack:
        judge = installation.serve_judge(stack)
        with urlopen(judge.url.replace("/v1", "/end"), timeout=10) as reply:
            reply.read()
        judge.process.wait(timeout=30)
        with pytest.raises(EvaluationFailed, match="the judge's server ended with code 1: MemoryError: no more"):
            judge.check()
