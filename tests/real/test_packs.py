"""Several tasks in one pod: through a running scheduler, with stages of no time."""

import pytest

from tests.airflow_server import Airflow, airflow_environment, free_port, migrate, standalone
from tests.real import pack_double, stage_double

pytestmark = [pytest.mark.real, pytest.mark.slow]  # `make demo` has a pack, too

SUITE = "packing: auto\ntasks: {demo_arithmetic: {}, demo_choice: {}, demo_cloze: {}}\n"


@pytest.fixture(scope="module")
def airflow(environments, tiny_checkpoints, tmp_path_factory):
    """A running Airflow whose stages are doubles."""
    folder = tmp_path_factory.mktemp("airflow")
    (folder / "suites").mkdir()
    (folder / "suites" / "own.yaml").write_text(SUITE)
    python = environments / "airflow" / "bin" / "python"
    calls = stage_double.install(folder / "environments", environments, python, pack_double.__file__)
    port = free_port()
    environment = airflow_environment(
        folder / "environments",
        folder,
        port,
        PATH=f"{environments / 'airflow' / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        HALOS_EVAL_STORE=f"file://{folder / 'store'}",
        HALOS_EVAL_CHECKPOINTS=str(tiny_checkpoints),
        HALOS_EVAL_SUITES=str(folder / "suites"),
    )
    migrate(environment)
    with standalone(environment, port):
        server = Airflow(port, folder / "store")
        server.calls = calls
        yield server


def pools_of(airflow, run_id):
    found = airflow.call("GET", f"/dags/evaluate_checkpoint/dagRuns/{run_id}/taskInstances")["task_instances"]
    tasks = {"pack", "harness"}
    return {(one["task_id"], one["map_index"]): one["pool"] for one in found if one["task_id"] in tasks}


def test_a_pack_with_a_failing_task_a_kill_and_a_cleared_task(airflow):
    run_id = airflow.trigger(checkpoint="tiny", suite="own")
    state, tasks = airflow.finish(run_id, seconds=420)
    assert airflow.calls.read_text().splitlines() == [
        "pack demo_arithmetic", "pack demo_choice", "pack demo_cloze",  # killed
        "pack demo_choice", "pack demo_cloze",
    ]  # fmt: skip
    harness = {name: tasks["harness", name] for name in ("demo_arithmetic", "demo_choice", "demo_cloze")}
    assert harness == {"demo_arithmetic": "success", "demo_choice": "failed", "demo_cloze": "success"}
    assert state == "failed"
    waiting = {("harness", number): "default_pool" for number in range(3)}
    assert pools_of(airflow, run_id) == {("pack", 0): "halos_eval_gpu"} | waiting

    # as Airflow's UI does: with what is downstream, whatever its state
    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [["harness", 1]], "include_downstream": True}
    airflow.call("POST", "/dags/evaluate_checkpoint/clearTaskInstances", body | {"only_failed": False})
    state, tasks = airflow.finish(run_id, seconds=240)
    assert airflow.calls.read_text().splitlines()[5:] == ["harness demo_choice"]
    assert tasks["harness", "demo_choice"] == tasks["summarize", -1] == tasks["verdict", -1] == state == "success"
