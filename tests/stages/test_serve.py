"""The server of a judge, with a double of vLLM's program."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from urllib.request import urlopen

import pytest

from halos_eval.errors import DataUnavailable, EvaluationFailed
from halos_eval.stages import exchange as exchange_module
from halos_eval.stages import serve as module
from halos_eval.stages.exchange import Exchange
from halos_eval.stages.serve import ServeConfig, serve
from tests.airflow_server import wait_for
from tests.doubles import make_checkpoint

PYTHON = sys.executable

SERVES = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"argv": sys.argv[1:], "key": os.environ.get("VLLM_API_KEY")}).encode())

port = next(word for word in sys.argv if word.startswith("--port=")).removeprefix("--port=")
HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""
# The log of vLLM if the memory is too small, shortened
DIES = """
import sys
print("ERROR [core.py:1] EngineCore failed to start.\\nTraceback (most recent call last):\\n  File 'core.py', line 1")
print("ValueError: No available memory for the cache blocks.\\nTraceback (most recent call last):\\n  File 'utils.py'")
print("RuntimeError: Engine core initialization failed. See root cause above.")
sys.exit(1)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """``program(text)`` replaces vLLM's command by a Python program."""
    monkeypatch.setattr(module.tools, "check_installed", lambda *_: None)
    monkeypatch.setattr(module, "version", lambda _: "0.32.0+cpu")
    for one in (module, exchange_module):
        monkeypatch.setattr(one, "POLL_SECONDS", 0.02)

    def write(text):
        path = tmp_path / "bin" / "vllm"
        path.parent.mkdir()
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)
        monkeypatch.setattr(module.sys, "executable", str(path.with_name("python")))

    return write


@pytest.fixture
def config(tmp_path):
    """``config(**options)`` serves a folder that passes for a model."""

    def config(**options):
        model = str(make_checkpoint(tmp_path / "model"))
        return ServeConfig(**{"model": model, "exchange": str(tmp_path / "exchange")} | options)

    return config


def test_it_serves_until_the_judge_ends(program, config, tmp_path):
    program(SERVES)
    exchange = Exchange(tmp_path / "exchange")
    thread = threading.Thread(target=serve, args=(config(max_model_len=256, enforce_eager=True),))
    with exchange.present("judge"):
        thread.start()
        address = exchange.wait(60)
        with urlopen(address.url, timeout=10) as reply:
            started = json.load(reply)
    thread.join(60)
    assert not thread.is_alive()
    assert exchange.state("server") == "ended"
    with pytest.raises(OSError, match="refused"):
        urlopen(address.url, timeout=10)
    assert started["key"] == address.key
    assert address.key not in str(started["argv"])
    assert started["argv"][:2] == ["serve", str(tmp_path / "model")]
    assert {"--host=127.0.0.1", "--served-model-name=served", "--logprobs-mode=processed_logprobs"} < set(
        started["argv"]
    )
    assert {"--max-model-len=256", "--enforce-eager"} < set(started["argv"])
    assert [word for word in started["argv"] if word.startswith("--kv-cache-memory-bytes=")]


def test_a_judge_that_has_ended_already(program, config, tmp_path):
    program("import time; time.sleep(600)")
    with Exchange(tmp_path / "exchange").present("judge"):
        pass
    serve(config())


def test_the_judge_gets_the_cause_of_a_failed_start(program, config, tmp_path):
    program(DIES)
    exchange = Exchange(tmp_path / "exchange")
    words = "the judge's server ended with code 1: ValueError: No available memory for the cache blocks."
    with exchange.present("judge"):
        with pytest.raises(EvaluationFailed, match=words):
            serve(config())
        with pytest.raises(EvaluationFailed, match=words):
            exchange.wait()


def test_the_judge_hears_of_a_program_that_is_absent(program, config, tmp_path, monkeypatch):
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / "none" / "python"))
    with pytest.raises(EvaluationFailed, match="none/vllm"):
        serve(config())


def test_a_model_that_is_not_in_the_cache(program, config, tmp_path, monkeypatch):
    monkeypatch.setattr("halos_eval.stages.options.switch_off", lambda: None)
    program(SERVES)
    (tmp_path / "m.json").write_text('{"suite": "own"}')
    with pytest.raises(DataUnavailable, match="has no model lab/judge"):
        serve(config(model="lab/judge", manifest=str(tmp_path / "m.json")))
    with pytest.raises(DataUnavailable, match="has no model lab/judge"):
        Exchange(tmp_path / "exchange").check()


def test_vllm_ends_if_its_parent_is_killed(program, config, tmp_path):
    program(f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    text = (
        "import sys; from halos_eval.stages import serve as module; module.version = lambda _: '0.32.0+cpu';"
        "module.tools.check_installed = lambda *_: None; sys.executable = sys.argv[1];"
        "module.serve(module.ServeConfig.model_validate_json(sys.argv[2]))"
    )
    words = [PYTHON, "-c", text, module.sys.executable, config().model_dump_json()]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), 60)
        finally:
            process.kill()
    wait_for(lambda: not is_running((tmp_path / "pid").read_text()), 60)
    assert Exchange(tmp_path / "exchange").state("server") == "ended"


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
