"""``evaluate_checkpoint`` on data of the hub: once fetched it needs no hub, and gated data is reported."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager

import pytest

from tests.airflow_server import Airflow, airflow_environment, free_port, migrate, standalone, wait_for
from tests.conftest import hub_command, server

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.slow]

SUITE = """
include_path: tasks
harness: {backend: hf, dtype: float32, limit: 2}
tasks:
  gsm8k_likelihood: {}
  bbh_likelihood: {}
"""
TASK = """
task: {task}
dataset_path: {repo}
dataset_name: {name}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{{question}}}}}"
doc_to_target: "{{{{{answer}}}}}"
metric_list: [{{metric: acc}}]
"""
TASKS = (
    {"task": "gsm8k_likelihood", "repo": "openai/gsm8k", "name": "main", "question": "question", "answer": "answer"},
    {
        "task": "bbh_likelihood",
        "repo": "SaylorTwift/bbh",
        "name": "boolean_expressions",
        "question": "input",
        "answer": "target",
    },
)
CHECKPOINT = "tiny"
REASON = "the dataset SaylorTwift/bbh is gated. Accept its terms on the hub and set HF_TOKEN"


class Lab(Airflow):
    """A running Airflow and a hub that can be started and stopped; one of its datasets is gated."""

    def __init__(self, port, folder, hub):
        super().__init__(port, folder / "store")
        self.hub = hub

    def row(self, checkpoint=CHECKPOINT):
        """The checkpoint's row of the table."""
        text = (self.store / "reports" / "offline" / "summary.csv").read_text()
        return {row["model_name"]: row for row in csv.DictReader(text.splitlines())}[checkpoint]


@pytest.fixture(scope="module")
def lab(environments, tiny_checkpoints, hub_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    (folder / "suites" / "tasks").mkdir(parents=True)
    for task in TASKS:
        (folder / "suites" / "tasks" / f"{task['task']}.yaml").write_text(TASK.format(**task))
    (folder / "suites" / "offline.yaml").write_text(SUITE)
    root, hub_port, port = hub_data(), free_port(), free_port()
    (root / "gated.txt").write_text("SaylorTwift/bbh hf_right\n")

    @contextmanager
    def hub():
        with server(folder / "hub.log", *hub_command(root, hub_port)) as endpoint:
            yield endpoint

    environment = airflow_environment(
        environments,
        folder,
        port,
        HALOS_EVAL_STORE=f"file://{folder / 'store'}",
        HALOS_EVAL_CHECKPOINTS=str(tiny_checkpoints),
        HALOS_EVAL_SUITES=str(folder / "suites"),
        HF_ENDPOINT=f"http://127.0.0.1:{hub_port}",
        HF_HOME=str(folder / "cache"),
        HF_HUB_OFFLINE="0",
    )
    migrate(environment)
    with standalone(environment, port):
        yield Lab(port, folder, hub)


@pytest.fixture(scope="module")
def first(lab):
    """A run whose hub goes away once all data is fetched: its final state, and those of its tasks."""
    with lab.hub():
        run_id = lab.trigger(checkpoint=CHECKPOINT, suite="offline", tasks=["gsm8k_likelihood"])
        wait_for(lambda: lab.states(run_id).get(("fetch", -1)) == "success", 300, lambda: lab.states(run_id))
    return lab.finish(run_id)


def test_once_it_is_staged_the_hub_may_go_away(lab, first):
    state, tasks = first
    assert state == "success", tasks
    manifest = json.loads((lab.store / "manifests" / "offline.json").read_text())
    (item,) = manifest["items"]
    (record,) = (json.loads(path.read_text()) for path in (lab.store / "runs").rglob("record.json"))
    assert record["coverage"] == {"attempted": 2, "scored": 2}
    assert record["provenance"]["inputs"]["dataset:openai/gsm8k/main"] == item["revision"]
    assert "data" in record["identity"]["inputs"]
    # Not by its URL in the store: data fetched meanwhile is in another manifest.
    assert record["provenance"]["config"]["manifest"].startswith(str(lab.store.parent / "cache" / "halos-eval"))


def test_a_gated_set_without_a_token_costs_its_own_cell_only(lab, first):
    with lab.hub():
        run_id = lab.trigger(checkpoint=CHECKPOINT, suite="offline")
        state, tasks = lab.finish(run_id)
    assert state == "failed"
    assert [name for name, one in tasks.items() if one not in {"success", "skipped"}] == [("verdict", -1)]
    assert ("harness", "bbh_likelihood") not in tasks
    assert f"missing: bbh_likelihood (unavailable: {REASON})" in lab.log(run_id, "verdict")
    row = lab.row()
    assert row["status"] == f"bbh_likelihood: unavailable: {REASON}; trial: limit 2"
    assert row["gsm8k_likelihood-acc"]
    assert "avg" not in row


def test_where_nothing_can_be_had_the_run_is_red_with_the_reason(lab):
    with lab.hub():
        run_id = lab.trigger(checkpoint="other", suite="offline", tasks=["bbh_likelihood"])
        state, tasks = lab.finish(run_id)
    assert state == tasks["fetch", -1] == tasks["verdict", -1] == "failed"
    assert tasks["plan", -1] == tasks["summarize", -1] == "success"
    assert f"DataUnavailable: bbh_likelihood: {REASON}" in lab.log(run_id, "fetch")
    assert f"bbh_likelihood: unavailable: {REASON}" in lab.row("other")["status"]


def test_what_is_staged_needs_no_stage_and_no_hub(lab, first):
    run_id = lab.trigger(checkpoint=CHECKPOINT, suite="offline", tasks=["gsm8k_likelihood"])
    state, tasks = lab.finish(run_id)
    assert state == "success", tasks
    assert "nothing to do" in lab.log(run_id, "fetch")
