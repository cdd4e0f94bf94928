"""The export in the schema of Every Eval Ever, validated by the receiver's own schema."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from halos_eval.cli.main import run
from halos_eval.errors import BadInput
from halos_eval.exporters.every_eval_ever import documents
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Score
from tests.conftest import ROOT
from tests.doubles import NOW, finish, make_provenance
from tests.reports.evaluated import evaluate

__all__ = ["evaluate"]

SCHEMA = ROOT / ".venv" / "every-eval-ever" / "every_eval_ever" / "schemas" / "eval.schema.json"
SUITE = "alpaca_eval: {prompts: demo, reference: demo, judge: demo}\ntasks: {demo_choice: {}, demo_cloze: {}}"
ENDED = str(int(NOW.timestamp()))


@pytest.fixture
def valid():
    """``valid(document)`` raises unless the receiver takes the document."""
    if not SCHEMA.exists():
        pytest.skip("the receiver's schema is not installed: make .venv/every-eval-ever/.done")
    return jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate


@pytest.fixture
def exported(root, suite, evaluate):
    """``exported()`` returns the documents by collection. One task has no result."""
    suite(SUITE)
    evaluate("exp/kto", demo_choice=[1.0, 0.0, 1.0, 1.0], alpaca_eval=[1.25, 1.75], tags={"method": "kto"})

    def exported():
        return {path.split("/")[1]: one for path, one in documents(root, "own", "lab")}

    return exported


def test_the_receiver_takes_every_document(exported, valid):
    found = exported()
    assert set(found) == {"alpaca_eval", "demo_choice"}
    for one in found.values():
        valid(one)


def test_the_receivers_schema_rejects_what_is_wrong(exported, valid):
    wrong = exported()["demo_choice"]
    del wrong["evaluation_results"][0]["score_details"]["score"]
    with pytest.raises(jsonschema.ValidationError, match="'score' is a required property"):
        valid(wrong)


def test_a_task_keeps_its_score_error_and_number_of_documents(exported):
    one = exported()["demo_choice"]
    assert one["model_info"]["id"] == "lab/exp__kto"
    assert one["model_info"]["additional_details"]["tag:method"] == "kto"
    assert one["eval_library"]["name"] == "lm_eval"
    (result,) = one["evaluation_results"]
    assert result["score_details"] == {
        "score": 0.75,
        "uncertainty": {"num_samples": 4, "standard_error": {"value": 0.1}},
    }
    assert result["metric_config"]["lower_is_better"] is False


def test_a_win_rate_is_in_percent_with_its_judge(exported):
    one = exported()["alpaca_eval"]
    assert one["eval_library"]["name"] == "alpaca_eval"
    (result,) = one["evaluation_results"]
    metric = result["metric_config"]
    assert result["score_details"]["score"] == 50
    assert (metric["min_score"], metric["max_score"], metric["metric_unit"]) == (0, 100, "percent")
    assert metric["additional_details"]["judge"] == "judge"


def test_a_score_at_its_bound_has_an_interval_and_a_data_set_its_commit(root, suite, evaluate, valid):
    suite("tasks: {demo_choice: {}}")
    (job,) = evaluate("one").jobs
    score = Score(task="demo_choice", metric="acc", value=1.0, stderr=0.0, higher_is_better=True)
    inputs = {"dataset:lab/choices/easy": "c" * 40}
    finish(job, scores=(score,), provenance=make_provenance(NOW, **inputs))
    ((_, one),) = documents(root, "own", "lab")
    valid(one)
    (result,) = one["evaluation_results"]
    assert "standard_error" not in result["score_details"]["uncertainty"]
    assert result["score_details"]["uncertainty"]["confidence_interval"]["upper"] == 1
    assert result["source_data"]["hf_repo"] == "lab/choices"
    assert result["source_data"]["additional_details"]["revision"] == "c" * 40


@pytest.mark.parametrize(
    ("name", "revision", "published"),
    [
        ("gsm8k", "c" * 40, {"dataset_name": "gsm8k", "hf_repo": "gsm8k"}),
        # the repository lab/choices, or the configuration choices of a repository lab
        ("lab/choices", "c" * 40, {"dataset_name": "lab/choices"}),
        ("/data/lab/private", "fingerprint:0123456789abcdef", None),
        ("/data/lab/private", "c" * 40, None),
        ("json", "fingerprint:0123456789abcdef", None),
    ],
)
def test_only_a_data_set_of_the_hub_is_called_one(root, suite, evaluate, valid, name, revision, published):
    suite("tasks: {demo_choice: {}}")
    (job,) = evaluate("one").jobs
    score = Score(task="demo_choice", metric="acc", value=0.5, higher_is_better=True)
    finish(job, scores=(score,), provenance=make_provenance(NOW, **{f"dataset:{name}": revision}))
    ((_, one),) = documents(root, "own", "lab")
    valid(one)
    if published:
        published |= {"source_type": "hf_dataset", "additional_details": {"revision": revision}}
    assert one["evaluation_results"][0]["source_data"] == (
        published or {"dataset_name": "demo_choice", "source_type": "other"}
    )


def test_a_judge_in_both_orders_has_a_flip_rate_of_its_own_pairs(root, suite, evaluate, valid):
    suite("alpaca_eval: {prompts: demo, reference: demo, judge: demo}")
    judge = next(job for job in evaluate("one", alpaca_eval=[1.25, 1.75]).jobs if job.stage == "judge")
    flips = Score(task="alpaca_eval", metric="flip_rate", value=25.0, higher_is_better=False)
    finish(judge, scores=(flips,), details={"judged_in_both_orders": 8, "flips": 2})
    ((_, one),) = documents(root, "own", "lab")
    valid(one)
    (result,) = one["evaluation_results"]
    metric = result["metric_config"]
    assert (metric["min_score"], metric["max_score"], metric["metric_unit"]) == (0, 100, "percent")
    uncertainty = result["score_details"]["uncertainty"]
    assert uncertainty["num_samples"] == 8
    interval = uncertainty["confidence_interval"]
    assert (interval["lower"], interval["upper"]) == pytest.approx((7.15, 59.07), abs=0.01)


def test_judged_answers_come_from_the_engine_and_settings_of_the_samples(root, suite, evaluate, valid):
    suite("alpaca_eval: {prompts: demo, reference: demo, judge: demo, sampling: {max_tokens: 99}}")
    plan = evaluate("one", alpaca_eval=[1.25, 1.75])
    sampled = next(job.identity.document for job in plan.jobs if job.stage == "sample")
    ((_, one),) = documents(root, "own", "lab")
    valid(one)
    assert one["model_info"]["inference_engine"] == {"name": "vLLM", "version": sampled["tools"]["vllm"]}
    assert one["evaluation_results"][0]["generation_config"]["additional_details"] == {
        key: json.dumps(value) for key, value in sampled["settings"].items()
    }
    assert sampled["settings"]["max_tokens"] == 99


def test_a_result_without_any_score_is_left_out(root, suite, evaluate, caplog):
    suite("tasks: {demo_choice: {}}")
    (job,) = evaluate("one").jobs
    finish(job, missing={"demo_choice-acc,none": "no document has a score"})
    assert list(documents(root, "own", "lab")) == []
    assert "one, demo_choice is left out: demo_choice-acc,none: no document has a score" in caplog.text


def test_results_that_are_not_current_and_trials_are_left_out(root, suite, evaluate, caplog):
    suite("tasks: {demo_choice: {}}")
    evaluate("old", demo_choice=[1.0])
    suite("tasks: {demo_choice: {limit: 3}}")
    evaluate("trial", demo_choice=[1.0])
    assert list(documents(root, "own", "lab")) == []
    assert "trial, demo_choice is left out: a trial, limit 3" in caplog.text
    assert "old, demo_choice is left out: not current" in caplog.text


def test_a_damaged_plan_costs_itself_alone(root, suite, evaluate, caplog):
    suite("tasks: {demo_choice: {}}")
    evaluate("one", demo_choice=[1.0])
    filesystem.write_bytes(layout.plan_url(root, "own", "two"), b"{")
    ((path, _),) = documents(root, "own", "lab")
    assert re.fullmatch(r"data/demo_choice/lab/one/[0-9a-f-]{36}\.json", path)
    assert "two is left out" in caplog.text


def test_a_suite_without_results_is_bad_input(root):
    with pytest.raises(BadInput, match="no plan of own"):
        list(documents(root, "own", "lab"))


def test_the_command_writes_the_same_files_again(exported, root, tmp_path, capsys):
    words = ["export", "own", "--organization=lab", f"--store={root}", f"--output={tmp_path / 'out'}"]
    assert run(words) == 0
    first = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}
    assert run(words) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")} == first
    assert len(first) == 2
    assert "2 results: " in capsys.readouterr().out


@pytest.mark.parametrize("organization", ["../x", "a/b", ""])
def test_an_organization_is_a_name(root, organization, capsys):
    assert run(["export", "own", f"--organization={organization}", f"--store={root}"]) == 2
