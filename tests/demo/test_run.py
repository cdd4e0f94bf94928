"""``make demo`` with doubles of Airflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.demo import installation, run
from halos_eval.demo.checkpoints import INTACT, ROUNDED
from halos_eval.errors import EvaluationFailed
from halos_eval.planning.plan import make_plan, suite_manifest
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Score, write_model
from tests.doubles import make_checkpoint, make_manifest, make_provenance, make_record

ROOT = Path(__file__).parents[2]
FINISHED = "[info] DagRun Finished: dag_id=evaluate_checkpoint, state={}, run_id=x"


@pytest.fixture
def airflow(tmp_path, monkeypatch):
    """``airflow(program)`` replaces Airflow's command line by a Python program."""
    for module in (run, installation):
        monkeypatch.setattr(module, "LOGS", tmp_path)

    def replace(program):
        for module in (run, installation):
            monkeypatch.setattr(module, "airflow", lambda *words: [sys.executable, "-c", program, *words])

    return replace


@pytest.mark.parametrize(
    ("state", "code", "succeeded"), [("success", 0, True), ("failed", 0, False), ("success", 1, False)]
)
def test_the_state_of_a_run_is_returned(airflow, tmp_path, state, code, succeeded):
    airflow(f"import sys; print({FINISHED.format(state)!r}); sys.exit({code})")
    assert run._run_dag("kto", {}) is succeeded
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
    assert run._run_dag("kto", {})
    shown = [line.partition("  kto: ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["sample", "  sampled 3 of 12 prompts", "  halos-eval: Incomplete: 9 of 12"]


def test_an_error_of_airflow_is_reported(airflow, tmp_path):
    airflow("raise ImportError('no dags')")
    with pytest.raises(EvaluationFailed) as failed:
        run._run_dag("kto", {})
    assert str(failed.value) == (
        f"Airflow's run of kto ended with code 1: ImportError: no dags (log: {tmp_path / 'kto.log'})"
    )


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """The demo's files are in the test's folder."""
    for name in ("checkpoints", "suites"):
        monkeypatch.setattr(installation, name.upper(), tmp_path / "var" / name)
    monkeypatch.setattr(run, "CHECKPOINTS", tmp_path / "var" / "checkpoints")


def finish(checkout, *names):
    """Write the files of a finished run to ``checkout``: checkpoints, the manifest, and the records of ``names``."""
    root = f"file://{checkout}/var/store"
    for name in (INTACT, ROUNDED):
        make_checkpoint(checkout / "var" / "checkpoints" / name / "FINAL")
    suite = load_suite(str(installation.make_suite()))
    write_model(layout.manifest_url(root, "demo"), make_manifest(suite))
    registry = FolderRegistry(str(checkout / "var" / "checkpoints"))
    cluster = load_cluster()
    manifest = suite_manifest("demo", root, cluster)
    for name in names:
        for job in make_plan(suite, registry.get(name), root, cluster, manifest=manifest).jobs:
            metric, _, filter_name = (job.metric or "acc").partition(",")
            own = {
                "sample": {"files": {"outputs.json": "digest"}},
                "judge": {"provenance": make_provenance(outputs_sha256="digest")},
                "harness": {"scores": (Score(task=job.title, metric=metric, filter=filter_name or "none", value=0.5),)},
            }[job.stage]
            write_model(job.record, make_record(job.stage, job.task, name, fingerprint=job.fingerprint, **own))


@pytest.fixture
def demo(tmp_path):
    """``demo()`` runs the program of `make demo` without Airflow, DAGs and vLLM, and returns the printed lines."""

    def demo():
        done = subprocess.run(
            [sys.executable, "-m", "halos_eval.demo.run"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "80"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return demo


def test_with_all_results_nothing_is_started_and_the_table_is_written(demo, tmp_path):
    finish(tmp_path, INTACT, ROUNDED)
    lines = demo()
    assert lines[:2] == [f"{name}: all results exist" for name in (INTACT, ROUNDED)]
    assert max(map(len, lines[:-3])) <= 80
    report = tmp_path / "var" / "store" / "reports" / "demo" / "summary.csv"
    assert lines[-2:] == [f"report: {report.with_name('index.html')}", f"summary: {report}"]
    table = pd.read_csv(report)
    assert list(table["model_name"]) == [INTACT, ROUNDED]
    assert list(table["avg"]) == [0.5, 0.5]

    files = [path for path in (tmp_path / "var").rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    demo()
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("model_name,status\n")])
def test_a_missing_or_outdated_table_is_written_again(demo, tmp_path, damage):
    finish(tmp_path, INTACT, ROUNDED)
    report = Path(demo()[-1].removeprefix("summary: "))
    made = report.read_bytes()
    damage(report)
    demo()
    assert report.read_bytes() == made


def test_airflow_runs_only_for_the_checkpoint_with_missing_results(airflow, tmp_path, monkeypatch):
    finish(tmp_path, INTACT, ROUNDED)
    root = f"file://{tmp_path}/var/store"
    monkeypatch.setattr(run, "STORE", root)
    for record in (tmp_path / "var" / "store" / "runs" / ROUNDED).glob("harness.demo_cloze/*/record.json"):
        record.unlink()
    airflow(
        f"import sys; open({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10));"
        f"print({FINISHED.format('failed')!r})"
    )
    assert run.main() == 1
    *_, tested = (tmp_path / "calls").read_text().splitlines()
    assert tested == f'dags test evaluate_checkpoint --conf {{"checkpoint": "{ROUNDED}", "suite": "demo"}}'
    assert [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()] == ["db", "pools", "dags"]


def test_a_checkpoint_without_a_manifest_is_not_done(tmp_path, monkeypatch):
    finish(tmp_path, INTACT, ROUNDED)
    monkeypatch.setattr(run, "STORE", f"file://{tmp_path}/var/store")
    assert run._open_plans() == []
    filesystem.delete(layout.manifest_url(run.STORE, "demo"))
    assert [plan.checkpoint.name for plan in run._open_plans()] == [INTACT, ROUNDED]
