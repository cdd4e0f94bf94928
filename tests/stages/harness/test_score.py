"""The scoring of answers without lm_eval: what its process gets, what it is refused, and what is recorded."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from halos_eval.errors import BadInput, DataUnavailable, EvaluationFailed, StoreError
from halos_eval.stages.harness import score as module
from halos_eval.stages.harness.options import HarnessConfig, ScoreConfig, harness_identity
from halos_eval.stages.harness.replay import Answer, Answers, parse_answers, read_answers, write_answers
from halos_eval.stages.harness.score import deliver, score
from halos_eval.stages.run import Outcome
from halos_eval.storage import filesystem
from halos_eval.storage.records import (
    CheckpointRef,
    Coverage,
    Score,
    Usage,
    read_failure,
    read_record,
    write_model,
)
from tests.doubles import make_provenance, make_record

ANSWERS = Answers(answers={"generate_until": (Answer(request="r", answer="\u2028pass\n"),)}, rendered={"t": "text"})
CHECKPOINT = CheckpointRef(name="kto", location="/kto", digest="d")
GPU = Usage(load_seconds=60, work_seconds=600)


@pytest.fixture
def generated(tmp_path, monkeypatch):
    """Answers in a folder, as the first half leaves them, and the options of the second half."""
    monkeypatch.setattr("halos_eval.stages.tools.check_installed", lambda *_: None)
    config = HarnessConfig(
        model="/kto", task="humaneval", output_dir="", confirm_unsafe_code=True, apply_chat_template=True, stop=("###",)
    )
    identity = harness_identity("humaneval", config, None, "chatml", CHECKPOINT, stop=("###",))
    folder = str(tmp_path / "answers")
    provenance = make_provenance().model_copy(
        update={"config": {"tensor_parallel_size": 2}, "hardware": {"gpus": "H100"}, "inputs": {"prompt:bos": "none"}}
    )
    record = make_record(
        "harness",
        "humaneval",
        identity=identity.document,
        fingerprint=identity.fingerprint,
        checkpoint=CHECKPOINT,
        details={"empty": 1.0},
        usage=GPU,
        files=write_answers(folder, ANSWERS),
        provenance=provenance,
    )
    write_model(f"{folder}/generated.json", record)
    return ScoreConfig(answers=folder, output_dir=str(tmp_path / "out"), expect=identity.fingerprint)


@pytest.fixture
def scorer(monkeypatch):
    """Stands in for the second process; a list of what it was given."""
    given = []

    def run(folder, environment):
        given.append((json.loads((folder / "request.json").read_text()), environment))
        assert parse_answers((folder / "answers.json.gz").read_bytes()) == ANSWERS
        (folder / "out").mkdir()
        (folder / "out" / "results.json").write_text("{}")
        outcome = Outcome(
            scores=(Score(task="humaneval", metric="pass@1", value=0.5),),
            coverage=Coverage(attempted=1, scored=1),
            details={"stopped_items": 0},
            usage=Usage(load_seconds=0, work_seconds=0),
            files={"results.json": "digest"},
        )
        (folder / "outcome.json").write_text(outcome.model_dump_json())

    monkeypatch.setattr(module, "_run_scorer", run)
    return given


def test_the_record_is_that_of_the_task(generated, scorer):
    record = score(generated)
    first = read_record(f"{generated.answers}/generated.json")
    assert (record.stage, record.task, record.checkpoint) == ("harness", "humaneval", CHECKPOINT)
    assert (record.fingerprint, record.identity) == (first.fingerprint, first.identity)
    assert record.details == {"empty": 1, "stopped_items": 0}
    assert record.usage == GPU  # what it costs, for the next plan
    assert record.provenance.hardware == {"gpus": "H100"}
    assert record.provenance.config["tensor_parallel_size"] == 2
    assert record.provenance.inputs["prompt:bos"] == "none"
    assert read_record(f"{generated.output_dir}/record.json") == record
    assert filesystem.read_bytes(f"{generated.output_dir}/results.json") == b"{}"


def test_a_finished_task_is_not_scored_again(generated, scorer):
    assert score(generated) == score(generated)
    assert len(scorer) == 1


def test_a_record_does_not_count_where_a_models_code_could_have_written_it(generated, scorer, monkeypatch):
    monkeypatch.setattr(module.sandbox, "landlock_version", lambda: 0)
    score(generated)
    score(generated)
    assert len(scorer) == 2


def test_the_second_process_gets_no_secret(generated, scorer, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "OPENAI_API_KEY", "HALOS_EVAL_STORE", "PYTHONPATH"):
        monkeypatch.setenv(name, "never-to-be-read")
    monkeypatch.setenv("HALOS_EVAL_ACCEPT_WEAK_SANDBOX", "true")
    monkeypatch.setenv("https_proxy", "http://proxy")  # without a manifest, it reads from the hub
    score(generated)
    ((request, environment),) = scorer
    assert "never-to-be-read" not in environment.values()
    assert environment["HALOS_EVAL_ACCEPT_WEAK_SANDBOX"] == "true"
    assert environment["https_proxy"] == "http://proxy"
    assert (request["task"], request["model"], request["manifest"]) == ("humaneval", "", None)
    assert (request["confirm_unsafe_code"], request["apply_chat_template"]) == (True, True)
    assert "proxy" not in module._environment(Path("/folder"), fetched=True).values()


def test_without_answers_there_is_a_reason(generated, tmp_path):
    config = generated.model_copy(update={"answers": str(tmp_path / "none")})
    with pytest.raises(DataUnavailable, match=r"none has no answers\. Run `halos-eval harness --answers-only`"):
        score(config)
    assert read_failure(f"{config.output_dir}/failure.json").error == "DataUnavailable"


def test_answers_to_something_else_are_not_scored(generated, scorer, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "humaneval.yaml").write_text("task: humaneval")
    with pytest.raises(BadInput, match="of humaneval have changed since its answers were generated"):
        score(generated.model_copy(update={"include_path": str(tmp_path / "tasks")}))
    assert not scorer


def test_answers_that_were_changed_are_not_scored(generated, scorer):
    (file,) = Path(generated.answers).glob("answers-*.json.gz")
    file.write_bytes(b"other")
    with pytest.raises(StoreError, match="does not match the digest in its record"):
        score(generated)
    assert not scorer


def test_a_copy_of_the_answers_is_scored_like_them(generated, scorer, tmp_path):
    record = read_record(f"{generated.answers}/generated.json")
    copy = str(tmp_path / "copy")
    deliver(generated.answers, copy, record)
    assert read_answers(copy, record) == read_answers(generated.answers, record)
    assert score(generated.model_copy(update={"answers": copy})).scores


def run_scorer(program, folder, monkeypatch):
    """Run ``program`` in place of the second process."""
    (folder / "python").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{program}'\n")
    (folder / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    module._run_scorer(folder, {"PATH": os.environ["PATH"]})


def test_the_error_of_the_second_process_is_raised_here(tmp_path, monkeypatch):
    (tmp_path / "error.json").write_text(json.dumps({"error": "DataUnavailable", "message": "no such data"}))
    with pytest.raises(DataUnavailable, match="no such data"):
        run_scorer("raise SystemExit(3)", tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("program", "code"), [("import os; os.kill(os.getpid(), 9)", "-9"), ("raise SystemExit(1)", "1"), ("pass", "0")]
)
def test_a_second_process_that_ends_without_an_outcome(tmp_path, monkeypatch, program, code):
    with pytest.raises(EvaluationFailed, match=f"ended with exit code {code}.*raise memory in the profile cpu"):
        run_scorer(program, tmp_path, monkeypatch)
