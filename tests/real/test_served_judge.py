"""A checkpoint that is judged by a model of this machine: the planned commands, with vLLM and alpaca_eval."""

from __future__ import annotations

import json

import pytest

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.checkpoints.weights import inspect
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.data import prompts
from halos_eval.planning.plan import make_plan
from halos_eval.stages.tools import pinned
from halos_eval.storage import result_files
from halos_eval.storage.records import read_record, write_model
from tests.doubles import make_record

# tests/real/test_demo.py runs the same with the demo's checkpoints.
pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.slow]
SUITE = "{{enforce_eager: true, alpaca_eval: {{prompts: demo, reference: demo, judge: {{model: {}, dtype: float32}}}}}}"


@pytest.fixture
def plan(tiny, suite, root):
    """``plan()`` plans a suite whose judge is the tiny model."""
    suite(SUITE.format(tiny))
    return lambda: make_plan(load_suite("own"), Checkpoint(name="kto", location=str(tiny)), root, load_cluster())


def sampled(job):
    """Write what the sample stage would have written: another answer than the reference's to each prompt."""
    rows = prompts.load("demo", "reference").rows
    outputs = [{"instruction": row["instruction"], "output": f"answer {n}"} for n, row in enumerate(rows)]
    files = result_files.write(job.record.rpartition("/")[0], {"outputs.json": json.dumps(outputs).encode()})
    write_model(job.record, make_record("sample", fingerprint=job.fingerprint, files=files))
    return len(rows)


def test_a_model_judges_and_its_server_ends(plan, tiny, run, tmp_path):
    sample, judge = plan().jobs
    pairs = sampled(sample)
    stage, server = judge.with_server(str(tmp_path / "exchange"))
    with run.started("worker", *server.argv) as process:
        done = run("judge", *stage.argv)
        assert done.returncode == 0, done.stderr + process.log.read_text()[-2000:]
        assert process.wait(60) == 0
    record = read_record(judge.record)
    assert record.fingerprint == judge.fingerprint
    assert (record.coverage.attempted, record.coverage.scored) == (pairs, pairs)
    (win_rate,) = [score.value for score in record.scores if score.metric == "win_rate"]
    assert 0 < win_rate < 100
    inputs = record.provenance.inputs
    assert inputs["judge_weights"] == inspect(str(tiny)).digest
    assert inputs["judge_model"] == "tiny"
    assert inputs["judge_vllm"].startswith(pinned("vllm"))
    assert "127.0.0.1" not in inputs["endpoint"]
    assert [job.done for job in plan().jobs] == [True, True]
