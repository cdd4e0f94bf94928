"""The local operator: the environment of a stage's process, and what follows from its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowRescheduleException

from halos_eval.orchestration.failures import StageFailed, StageFailure, StageInterrupted
from halos_eval.orchestration.local import LocalStageOperator, stage_environment
from halos_eval.orchestration.waiting import LONGEST
from halos_eval.planning.jobs import StageJob

CONTEXT = {"ti": SimpleNamespace(task_id="one", map_index=-1), "run_id": "manual"}
PROGRAM = """#!/bin/sh
printf '%s\\n' "$@" > "$HERE/argv"
env > "$HERE/env"
echo working
echo "halos-eval: the reason" >&2
{body}
"""


def make_job(stage, **parts):
    """Return a job of ``stage``, as the plan makes it."""
    return StageJob(**{"stage": stage, "image": "worker", "argv": (stage,), "profile": "default"} | parts)


def test_a_stage_gets_its_own_variables(monkeypatch):
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_HOME", "_AIRFLOW_PROCESS", "PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "private")
    for name in ("HALOS_EVAL_STORE", "AWS_ENDPOINT_URL", "HF_HOME", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "shared")
    for stage in ("sample", "judge", "harness", "summarize"):
        found = stage_environment(make_job(stage))
        assert "private" not in found.values()
        assert list(found.values()).count("shared") == 4
        assert found["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("stage", "secrets"),
    [
        ("sample", {"HF_TOKEN"}),
        ("harness", {"HF_TOKEN"}),
        ("judge", {"OPENAI_API_KEY"}),
        ("summarize", set()),
    ],
)
def test_a_secret_goes_where_it_is_used(monkeypatch, stage, secrets):
    monkeypatch.setenv("HF_TOKEN", "h")
    monkeypatch.setenv("OPENAI_API_KEY", "o")
    assert {"HF_TOKEN", "OPENAI_API_KEY"} & stage_environment(make_job(stage)).keys() == secrets


@pytest.fixture
def operator(tmp_path, monkeypatch):
    """``operator(body)`` runs a shell program in place of halos-eval."""
    monkeypatch.setenv("HALOS_EVAL_ENVIRONMENTS", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))

    def operator(body, argv=("harness", "--task=a b; c", "--", "{{ x }}"), stage="harness"):
        program = tmp_path / "worker" / "bin" / "halos-eval"
        program.parent.mkdir(parents=True)
        program.write_text(PROGRAM.format(body=body))
        program.chmod(0o755)
        return LocalStageOperator(task_id="one", job=make_job(stage, argv=argv).model_dump(mode="json"))

    return operator


def test_a_stage_that_succeeds(operator, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "private")
    monkeypatch.setenv("OPENAI_API_KEY", "private")
    monkeypatch.setenv("HALOS_EVAL_HEARTBEAT_URL", "https://example.org/private")
    assert operator("exit 0").execute(CONTEXT) is None
    # The arguments are as planned: no shell splits them, and nothing is rendered.
    assert (tmp_path / "argv").read_text().splitlines() == [
        "harness", "--owner=task one -1 of manual", "--task=a b; c", "--", "{{ x }}"
    ]  # fmt: skip
    assert "private" not in (tmp_path / "env").read_text()


@pytest.mark.parametrize(("code", "kind"), [(2, StageFailed), (5, StageInterrupted), (1, StageFailed)])
def test_a_failed_stage_reports_its_last_log_line(operator, code, kind):
    with pytest.raises(StageFailure, match="halos-eval: the reason") as caught:
        operator(f"exit {code}").execute(CONTEXT)
    assert type(caught.value) is kind


def test_a_stage_whose_engine_failed_reports_the_cause(operator):
    """vLLM's main process refers to the traceback of another one. Warnings of libraries follow."""
    body = """cat <<'END'
Traceback (most recent call last):
  File "core.py", line 1, in run
ValueError: No available memory for the cache blocks.
Traceback (most recent call last):
  File "core_client.py", line 1, in wait
RuntimeError: Engine core initialization failed. See root cause above.
UserWarning: leaked shared_memory objects
END
exit 1"""
    with pytest.raises(StageFailed) as caught:
        operator(body).execute(CONTEXT)
    assert str(caught.value) == "ValueError: No available memory for the cache blocks."


def test_a_killed_stage_is_retried(operator):
    with pytest.raises(StageInterrupted, match="killed by signal 9"):
        operator("kill -KILL $$").execute(CONTEXT)


@pytest.mark.parametrize(
    ("after", "until"),
    [
        (timedelta(minutes=20), timedelta(minutes=20)),
        (timedelta(days=900), LONGEST),
        (-timedelta(hours=1), timedelta()),
    ],
)
def test_a_stage_that_waits_for_a_batch_is_rescheduled(operator, after, until):
    then = f"{datetime.now(UTC) + after:%Y-%m-%dT%H:%M:%SZ}"
    task = operator(f"echo 'halos-eval: Waiting: 800 requests wait. Run it again after {then}'; exit 9")
    with pytest.raises(AirflowRescheduleException) as caught:
        task.execute(CONTEXT)
    assert abs(caught.value.reschedule_date - datetime.now(UTC) - until) < timedelta(minutes=1)


@pytest.mark.parametrize("job", [{}, None])
def test_nothing_to_do(job, tmp_path, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_ENVIRONMENTS", str(tmp_path / "none"))
    assert LocalStageOperator(task_id="one", job=job).execute(CONTEXT) is None


def test_a_missing_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_ENVIRONMENTS", str(tmp_path / "none"))
    job = make_job("sample").model_dump(mode="json")
    with pytest.raises(StageFailure, match="none/worker/bin/halos-eval"):
        LocalStageOperator(task_id="one", job=job).execute(CONTEXT)


def test_a_task_that_is_killed_ends_its_stage(operator, tmp_path):
    task = operator("sleep 60 & echo $! > $HERE/child; wait")
    ended = []

    def execute():
        with pytest.raises(StageFailure):
            task.execute(CONTEXT)
        ended.append(True)

    thread = threading.Thread(target=execute, daemon=True)
    thread.start()
    child = tmp_path / "child"
    wait_for(lambda: child.is_file() and child.read_text().strip())
    task.on_kill()
    thread.join(timeout=10)
    assert ended
    wait_for(lambda: not is_running(int(child.read_text())))


def test_a_stage_dies_with_its_task(operator, tmp_path):
    """Even if SIGKILL ends the task's process, which then cannot end the stage itself."""
    job = operator("echo $$ > $HERE/pid; exec sleep 60").job
    program = (
        "import json, sys; from halos_eval.orchestration.local import LocalStageOperator;"
        "from tests.orchestration.test_local import CONTEXT;"
        "LocalStageOperator(task_id='one', job=json.loads(sys.argv[1])).execute(CONTEXT)"
    )
    words = [sys.executable, "-c", program, json.dumps(job)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        pid = tmp_path / "pid"
        wait_for(lambda: pid.is_file() and pid.read_text().strip(), seconds=30)
        assert is_running(int(pid.read_text()))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not is_running(int(pid.read_text())))


STAGE = """#!{python}
import os, sys, time
from pathlib import Path
from halos_eval.errors import HalosEvalError
from halos_eval.stages.exchange import Address, Exchange
name, folder = sys.argv[1], next(word for word in sys.argv if word.startswith("--exchange=")).partition("=")[2]
Path(os.environ["HERE"], name + ".pid").write_text(str(os.getpid()))
Path(os.environ["HERE"], name + ".key").write_text(os.environ.get("OPENAI_API_KEY", ""))
exchange = Exchange(Path(folder))
{body}
"""
JUDGES = """
with exchange.present("judge"):
    try:
        print("answered by", exchange.wait(60).url, flush=True)
    except HalosEvalError as error:
        sys.exit(f"halos-eval: {type(error).__name__}: {error}")
"""
SERVES = """
with exchange.present("server"):
    exchange.announce(Address(url="http://loopback", key="k", vllm="1", gpus="none"))
    while exchange.state("judge") != "ended":
        time.sleep(0.02)
"""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """``served(judges, serves)`` runs these programs as a judge stage and its server."""
    monkeypatch.setenv("HALOS_EVAL_ENVIRONMENTS", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "private")

    def served(judges, serves):
        for image, body in {"judge": judges, "worker": serves}.items():
            program = tmp_path / image / "bin" / "halos-eval"
            program.parent.mkdir(parents=True)
            program.write_text(STAGE.replace("{python}", sys.executable).replace("{body}", body))
            program.chmod(0o755)
        job = make_job("judge", image="judge", argv=("judge", "--", "o"), server=("serve", "--", "/m"))
        return LocalStageOperator(task_id="one", job=job.model_dump(mode="json"))

    return served


def test_a_judge_has_its_server_beside_it(served, tmp_path, capsys):
    served(JUDGES, SERVES).execute(CONTEXT)
    assert "answered by http://loopback" in capsys.readouterr().out
    assert (tmp_path / "judge.key").read_text() == "private"
    assert (tmp_path / "serve.key").read_text() == ""
    assert not is_running(int((tmp_path / "serve.pid").read_text()))


def test_a_judge_hears_of_a_server_that_cannot_start(served):
    with pytest.raises(StageFailure, match="server ended with code 1: ImportError: no torch"):
        served(JUDGES, "raise ImportError('no torch')").execute(CONTEXT)


def test_a_server_ends_if_its_judge_is_killed(served, tmp_path):
    killed = 'with exchange.present("judge"): exchange.wait(60); os.kill(os.getpid(), 9)'
    with pytest.raises(StageInterrupted, match="killed by signal 9"):
        served(killed, SERVES).execute(CONTEXT)
    assert not is_running(int((tmp_path / "serve.pid").read_text()))


def test_a_server_that_does_not_end_is_killed(served, tmp_path, monkeypatch):
    monkeypatch.setattr("halos_eval.orchestration.local.END_SECONDS", 0.2)
    begun = 'while not Path(os.environ["HERE"], "serve.key").exists(): time.sleep(0.02)'
    served(begun, "time.sleep(600)").execute(CONTEXT)
    assert not is_running(int((tmp_path / "serve.pid").read_text()))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
