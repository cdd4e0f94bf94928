"""``evaluate_checkpoint`` through a running scheduler, with real pods' commands as local processes."""

import json
import shutil
import subprocess
from urllib.error import HTTPError

import pandas as pd
import pytest

from tests.airflow_server import Airflow, airflow_environment, free_port, migrate, standalone, wait_for

# slow: `make demo`, test_nights.py and the cluster have schedulers, too
pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.slow]

STORED = "s3://evaluations/listed/FINAL"
SUITE = """
enforce_eager: true
harness: {max_model_len: 4096, dtype: float32}
tasks:
  demo_cloze: {}
  demo_arithmetic: {max_model_len: 32}
  no_such_task: {}
"""


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoints, s3, tmp_path_factory):
    """A list of checkpoints: two folders, and `stored` in a bucket."""
    shutil.copytree(tiny_checkpoints / "tiny" / "FINAL", s3.folder / "listed" / "FINAL")
    places = {name: f"{tiny_checkpoints}/{name}/FINAL" for name in ("tiny", "other")}
    entries = [{"name": name, "location": url} for name, url in (places | {"stored": STORED}).items()]
    path = tmp_path_factory.mktemp("list") / "checkpoints.yaml"
    path.write_text(json.dumps({"checkpoints": entries}))
    yield path
    shutil.rmtree(s3.folder / "listed")


@pytest.fixture(scope="module")
def airflow(environments, checkpoints, s3, tmp_path_factory):
    """A running Airflow with an empty store and one suite of its own."""
    folder = tmp_path_factory.mktemp("airflow")
    (folder / "suites").mkdir()
    (folder / "suites" / "half.yaml").write_text(SUITE)
    port = free_port()
    environment = airflow_environment(
        environments,
        folder,
        port,
        HALOS_EVAL_STORE=f"file://{folder / 'store'}",
        HALOS_EVAL_CHECKPOINTS=str(checkpoints),
        HALOS_EVAL_SUITES=str(folder / "suites"),
        **s3.environment,
    )
    migrate(environment)
    with standalone(environment, port):
        server = Airflow(port, folder / "store")
        server.environment = environment
        yield server


def stages_running(airflow):
    """Processes of stages that write to this store."""
    found = subprocess.run(
        ["pgrep", "-f", f"halos-eval harness .*{airflow.store}"], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


def test_doctor_reads_the_database_and_the_files(airflow, environments):
    words = [environments / "airflow" / "bin" / "python", "-m", "halos_eval.orchestration.doctor"]
    found = subprocess.run(words, env=airflow.environment, capture_output=True, text=True, check=True).stdout
    lines = [line.partition(": ") for line in found.splitlines() if line.startswith(("ok ", "FAILED "))]
    assert [line[0] for line in lines] == [
        f"ok      {name}" for name in ("cluster file", "store", "checkpoints", "policy", "pools")
    ]
    assert "halos_eval_gpu: 1" in lines[-1][2]


def test_bad_input_fails_at_once_and_nothing_is_run(airflow):
    before = set(airflow.store.rglob("*"))
    state, tasks = airflow.finish(airflow.trigger(checkpoint="no-such-model", suite="demo"))
    assert state == "failed"
    assert tasks.pop(("prepare", -1)) == "failed"
    assert set(tasks.values()) == {"upstream_failed"}
    assert set(airflow.store.rglob("*")) == before


@pytest.mark.parametrize(
    "conf", [{"checkpoint": "../etc"}, {"checkpoint": "a; rm -rf /"}, {"checkpoint": "a", "suite": "{{ 1 }}"}]
)
def test_parameters_that_could_leave_their_place_are_refused(airflow, conf):
    with pytest.raises(HTTPError) as refused:
        airflow.trigger(**conf)
    assert refused.value.code in {400, 422}
    refused.value.close()


@pytest.fixture(scope="module")
def half(airflow):
    """A run of the suite: its end, and its tasks'. demo_arithmetic may generate more than its length."""
    return airflow.finish(airflow.trigger(checkpoint="tiny", suite="half"))


def test_one_failed_task_costs_its_own_cell_only(airflow, half):
    state, tasks = half
    assert state == "failed"
    assert tasks["harness", "demo_cloze"] == tasks["summarize", -1] == "success"
    assert tasks["harness", "demo_arithmetic"] == tasks["verdict", -1] == "failed"
    assert ("harness", "no_such_task") not in tasks
    table = pd.read_csv(airflow.store / "reports" / "half" / "summary.csv").to_dict("records")
    (row,) = [row for row in table if row["model_name"] == "tiny"]
    assert 0 <= row["demo_cloze-acc"] <= 1
    assert "avg" not in row
    assert row["status"].startswith("demo_arithmetic: BadInput: the task lets the model generate ")
    assert "; no_such_task: unavailable: unknown lm_eval task 'no_such_task'" in row["status"]
    record = next((airflow.store / "runs").rglob("record.json"))
    assert json.loads(record.read_text())["provenance"]["suite"] == "half"


def test_a_second_run_does_only_what_is_missing(airflow, half):
    before = {path: path.stat().st_mtime_ns for path in (airflow.store / "runs").rglob("record.json")}
    assert before
    _, tasks = airflow.finish(airflow.trigger(checkpoint="tiny", suite="half"))
    assert ("harness", "demo_cloze") not in tasks
    assert tasks["harness", "demo_arithmetic"] == "failed"
    assert before == {path: path.stat().st_mtime_ns for path in (airflow.store / "runs").rglob("record.json")}


def test_a_task_marked_failed_leaves_no_process(airflow):
    run_id = airflow.trigger(checkpoint="other", suite="half", tasks=["demo_cloze"])
    wait_for(lambda: stages_running(airflow), 120, lambda: airflow.states(run_id))
    path = f"/dags/evaluate_checkpoint/dagRuns/{run_id}/taskInstances/harness/0"
    airflow.call("PATCH", path, {"new_state": "failed"})
    wait_for(lambda: not stages_running(airflow), 300, lambda: "the stage's process is still there")
    state, tasks = airflow.finish(run_id)
    assert state == "failed"
    assert tasks["verdict", -1] == "failed"


def test_a_checkpoint_in_a_bucket_is_fetched_and_evaluated(airflow):
    state, tasks = airflow.finish(airflow.trigger(checkpoint="stored", suite="half", tasks=["demo_cloze"]))
    assert (state, tasks["fetch", -1], tasks["harness", "demo_cloze"]) == ("success", "success", "success")
    (path,) = (airflow.store / "runs" / "stored").rglob("record.json")
    record = json.loads(path.read_text())
    assert record["checkpoint"]["location"] == STORED
    copy = json.loads((airflow.store / "copies" / "stored.json").read_text())
    assert copy["digest"] == record["checkpoint"]["digest"]
