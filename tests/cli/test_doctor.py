"""``halos-eval doctor``: what is checked, and that each failure names its remedy."""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest

from halos_eval.cli.doctor import DoctorConfig, check_gpus, check_hub, check_judge, check_sandbox, doctor
from halos_eval.cli.main import run
from halos_eval.errors import BadInput, EvaluationFailed
from halos_eval.stages.harness import sandbox
from tests.doubles import make_checkpoint


@pytest.fixture
def judge(monkeypatch):
    """An endpoint that accepts one key; gives the answers' codes."""
    codes = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            codes.append(200 if self.headers["Authorization"] == "Bearer right" else 401)
            self.send_response(codes[-1] if self.path in {"/v1/models", "/api/whoami-v2"} else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    yield codes
    server.shutdown()
    server.server_close()


def nvml(monkeypatch, count=0, driver="580.65.06", error=None):
    """Install a double of NVIDIA's library."""

    class NVMLError(Exception):
        pass

    def init():
        if error:
            raise NVMLError(error)

    double = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlSystemGetDriverVersion=lambda: driver,
    )
    monkeypatch.setitem(sys.modules, "pynvml", double)


def test_everything_is_there(tmp_path, judge, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    nvml(monkeypatch, count=2)
    make_checkpoint(tmp_path / "checkpoints" / "kto" / "FINAL")
    words = ["--store", f"file://{tmp_path}/store", "--checkpoints", str(tmp_path / "checkpoints")]
    assert run(["doctor", *words, "--writable", str(tmp_path), "--judge", "--gpus", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "ok      store", "ok      checkpoints", f"ok      folder {tmp_path}", "ok      judge", "ok      GPU",
    ]  # fmt: skip
    assert judge == [200]
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not list(tmp_path.glob(".doctor*"))


def test_every_failure_is_listed(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "checkpoints").mkdir()
    config = DoctorConfig(
        store=f"file://{tmp_path}/file",
        checkpoints=str(tmp_path / "checkpoints"),
        writable=(tmp_path / "none",),
    )
    with pytest.raises(BadInput, match="3 checks failed"):
        doctor(config)
    store, checkpoints, folder = capsys.readouterr().out.splitlines()
    assert "Check the free space, the permissions" in store
    assert "Mount the claim with the checkpoints" in checkpoints
    assert "Use a ReadWriteMany claim" in folder


def test_nothing_is_checked_that_is_not_named(capsys):
    assert run(["doctor"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("key", "remedy"), [("wrong", "Replace the Secret's value"), ("", "Add it to kubernetes.secrets")]
)
def test_a_key_that_the_judge_does_not_take(judge, monkeypatch, key, remedy):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(BadInput, match=remedy) as caught:
        check_judge()
    assert "wrong" not in str(caught.value)


@pytest.fixture
def hub(judge, monkeypatch, tmp_path):
    """The same server as a hub; gives the cache's folder."""
    monkeypatch.setenv("HF_ENDPOINT", os.environ["OPENAI_BASE_URL"].removesuffix("/v1"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


def test_a_hub_that_answers(hub, judge, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "right")
    assert check_hub().endswith("answers and accepts HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(BadInput, match="rejects HF_TOKEN"):
        check_hub()


def test_a_cache_stands_in_for_a_hub_that_does_not_answer(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"the cache is empty\. Set HF_ENDPOINT to a mirror"):
        check_hub()
    (hub / "hub" / "datasets--lab--prompts").mkdir(parents=True)
    assert check_hub().endswith("but the cache has 1 repositories")


def test_a_judge_that_does_not_answer(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(BadInput, match=r"networkPolicies\.extraEgress"):
        check_judge()


@pytest.mark.parametrize(
    ("double", "remedy"),
    [
        ({"error": "Driver Not Loaded"}, "Install NVIDIA's device plugin"),
        ({"count": 1}, "1 GPUs are visible; expected 2"),
        ({"count": 2, "driver": "570.124.06"}, "580 or newer"),
    ],
)
def test_gpus_that_are_not_enough(monkeypatch, double, remedy):
    nvml(monkeypatch, **double)
    with pytest.raises(BadInput, match=remedy):
        check_gpus(2)


def test_a_sandbox_that_holds():
    if not sandbox.landlock_version():
        pytest.skip("the kernel of this machine has no Landlock")
    assert check_sandbox() == f"Landlock {sandbox.landlock_version()} and seccomp"
    assert run(["doctor", "--sandbox"]) == 0


def test_a_sandbox_that_does_not_hold(monkeypatch):
    if not sandbox.landlock_version():
        pytest.skip("the kernel of this machine has no Landlock")
    monkeypatch.setattr(sandbox, "confine", lambda *_: None)
    with pytest.raises(EvaluationFailed, match=r"does not confine a process.*Use another node"):
        check_sandbox()


def test_a_kernel_without_landlock(monkeypatch):
    monkeypatch.setattr(sandbox, "landlock_version", lambda: 0)
    with pytest.raises(EvaluationFailed, match=r"Use another node or machine.*HALOS_EVAL_ACCEPT_WEAK_SANDBOX=true"):
        check_sandbox()
    monkeypatch.setenv("HALOS_EVAL_ACCEPT_WEAK_SANDBOX", "true")
    assert check_sandbox().startswith("no Landlock, which HALOS_EVAL_ACCEPT_WEAK_SANDBOX accepts")


def test_gpus_that_are(monkeypatch):
    nvml(monkeypatch, count=8, driver="590.1")
    assert check_gpus(8) == "8 with driver 590.1"
