"""``make demo`` with programs that stand in for Airflow and the judge's server."""

from __future__ import annotations

import subprocess
import sys

import pytest

from halos_eval.demo import run
from halos_eval.demo.judge_server import JudgeServer
from halos_eval.errors import EvaluationFailed

FINISHED = "[info] DagRun Finished: dag_id=evaluate_checkpoint, state={}, run_id=x"


@pytest.fixture
def airflow(tmp_path, monkeypatch):
    """``airflow(program)`` puts a Python program in the place of Airflow's command line."""
    monkeypatch.setattr(run, "LOGS", tmp_path)

    def replace(program):
        monkeypatch.setattr(run, "airflow", lambda *words: [sys.executable, "-c", program, *words])

    return replace


@pytest.mark.parametrize(
    ("state", "code", "succeeded"), [("success", 0, True), ("failed", 0, False), ("success", 1, False)]
)
def test_a_run_that_ends_tells_its_state(airflow, tmp_path, state, code, succeeded):
    airflow(f"import sys; print({FINISHED.format(state)!r}); sys.exit({code})")
    assert run._run_dag("kto", {}, None) is succeeded
    assert (tmp_path / "kto.log").read_text() == FINISHED.format(state) + "\n"


def test_progress_is_shown(airflow, capsys):
    lines = [
        "[info] [DAG TEST] starting task_id=sample map_index=0 [airflow.sdk.definitions.dag]",
        "[info] 12:00 INFO halos_eval.stages.sample: sampled 3 of 12 prompts [airflow.task.operators.x]",
        "[info] halos-eval: Incomplete: 9 of 12 [airflow.task.operators.x]",
        "[info] something else [airflow.x]",
        FINISHED.format("success"),
    ]
    airflow("print({!r})".format("\n".join(lines)))
    assert run._run_dag("kto", {}, None)
    shown = [line.partition("  kto: ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["sample", "  sampled 3 of 12 prompts", "  halos-eval: Incomplete: 9 of 12"]


def test_an_airflow_that_dies_says_why(airflow, tmp_path):
    airflow("raise ImportError('no dags')")
    with pytest.raises(EvaluationFailed) as failed:
        run._run_dag("kto", {}, None)
    assert str(failed.value) == (
        f"Airflow's run of kto ended with code 1: ImportError: no dags (log: {tmp_path / 'kto.log'})"
    )


def test_a_run_does_not_go_on_without_its_judge(airflow, tmp_path):
    """Airflow waits for an answer of a server that is gone: it is ended, and the reason is the server's."""
    airflow("import time; print('waiting', flush=True); time.sleep(600)")
    log = tmp_path / "judge.log"
    log.write_text("torch.OutOfMemoryError: no memory left\n")
    server = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(EvaluationFailed, match=r"the judge's server ended with code 1: torch.OutOfMemoryError: no mem"):
        run._run_dag("kto", {}, JudgeServer("http://127.0.0.1:9/v1", server, log))
