"""The harness stage without lm_eval: identity, and scores from results."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from halos_eval.checkpoints.weights import Weights
from halos_eval.errors import BadInput, EvaluationFailed
from halos_eval.stages.harness import stage
from halos_eval.stages.harness.options import HarnessConfig, harness_identity
from halos_eval.stages.harness.results import coverage_of, examples_of, scores_of
from halos_eval.stages.harness.tasks import dataset_revisions
from halos_eval.stages.run import Outcome
from tests.doubles import COVERAGE, USAGE, make_checkpoint

WEIGHTS = Weights(name="kto", model="/kto", digest="d")
COMMIT = "0123456789abcdef" * 2 + "01234567"


def config(**options):
    return HarnessConfig(**{"model": "/kto", "task": "mmlu", "output_dir": "/o"} | options)


def job(**options):
    found = config(**options)
    checkpoint = WEIGHTS.reference(found.name, found.model)
    identity = harness_identity(found.task, found, found.include_path, found.chat_template, checkpoint, stop=found.stop)
    return identity.at("/o/record.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fewshot_as_multiturn": True}, "requires apply_chat_template"),
        ({"backend": "hf", "batch_size": "auto"}, "Set a number"),
        ({"backend": "hf", "reproducible": True}, "Set reproducible: false for this task"),
        ({"task": "../x"}, "pattern"),
        ({"task": "a b"}, "pattern"),
        ({"task": "--x"}, "pattern"),
        ({"task": "a\n"}, "pattern"),
        ({"limit": 0}, "a whole number of documents from 1 on, or a share between 0 and 1"),
        ({"num_fewshot": -1}, "greater than or equal to 0"),
        ({"seed": (1, 2)}, "seed"),
        ({"gpu_memory_utilization": 0}, "greater than 0"),
        ({"limits": 5}, "Extra inputs"),
        ({"stop": ("",)}, "at least 1 character"),
    ],
)
def test_what_is_wrong_in_the_options(options, words):
    with pytest.raises(ValidationError, match=words):
        config(**options)


def test_lm_evals_own_task_is_pinned_by_its_version():
    assert job().inputs == {"model": "d"}
    assert job().document["tools"].keys() == {"lm-eval", "vllm"}
    assert job(backend="hf").document["tools"].keys() == {"lm-eval"}


def test_this_projects_tasks_are_pinned_by_their_content():
    assert job(task="demo_choice").inputs.keys() == {"model", "task"}


def test_tasks_of_ones_own_are_pinned_by_their_content(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.yaml").write_text("task: mine")
    before = job(include_path=str(tmp_path)).inputs["include_path"]
    (tmp_path / "deep" / "utils.pyc").write_text("compiled")
    assert job(include_path=str(tmp_path)).inputs["include_path"] == before
    (tmp_path / "deep" / "mine.yaml").write_text("task: other")
    assert job(include_path=str(tmp_path)).inputs["include_path"] != before


def test_tasks_of_ones_own_that_are_not_there():
    with pytest.raises(BadInput, match="--include-path /none is not a folder"):
        job(include_path="/none")


def test_a_template_is_pinned_by_its_text(tmp_path):
    template = tmp_path / "a.jinja"
    template.write_text("{{ messages }}")
    options = {"chat_template": str(template), "apply_chat_template": True}
    before = job(**options)
    assert before.inputs.keys() == {"model", "chat_template"}
    template.write_text("{{ messages[0] }}")
    assert job(**options).fingerprint != before.fingerprint


def test_the_batch_invariant_mode_is_a_setting_where_it_is_used():
    assert job(reproducible=True).document["settings"]["reproducible"] is True
    assert "reproducible" not in job().document["settings"]


def test_stop_strings_are_settings():
    assert job(apply_chat_template=True, stop=("#",)).document["settings"]["stop"] == ["#"]
    assert "stop" not in job(apply_chat_template=True).document["settings"]


@pytest.mark.parametrize("options", [{"chat_template": "chatml"}, {"stop": ("#",)}], ids=str)
def test_what_plain_text_does_not_use_is_the_same_job(options):
    assert job(**options).fingerprint == job().fingerprint
    assert job(**options, apply_chat_template=True).fingerprint != job(apply_chat_template=True).fingerprint


def test_a_budget_without_room_for_a_prompt_is_found_before_the_model_is_loaded(tmp_path):
    limits = {"tie_word_embeddings": True, "max_position_embeddings": 64}
    model = make_checkpoint(tmp_path / "kto", config_json=json.dumps(limits))
    chosen = config(model=str(model), output_dir=str(tmp_path / "out"), gen_kwargs={"max_gen_toks": 64})
    with pytest.raises(BadInput, match=r"max_gen_toks leaves no token for a prompt \(64\); expected less than .* 64\."):
        stage.harness(chosen)


def test_imports_for_the_data_are_part_of_the_load(monkeypatch):
    clock, began = SimpleNamespace(now=100.0), []

    @contextmanager
    def replayed(manifest, task):
        clock.now += 8
        yield

    def work(*arguments):
        began.append(arguments[-1])
        return Outcome(coverage=COVERAGE, usage=USAGE)

    monkeypatch.setattr(stage, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(stage, "replayed", replayed)
    monkeypatch.setattr(stage, "_work", work)
    stage._with_data(config(), WEIGHTS, job(), None, None)
    assert (began, clock.now) == ([100], 108)


def results(**tables):
    """Return a results dict as lm_eval does."""
    return {"results": tables, "group_subtasks": {}, "higher_is_better": {}}


def test_every_metric_has_its_filter_and_its_error():
    row = {
        "alias": "gsm8k_cot",
        "exact_match,strict-match": 0.25,
        "exact_match_stderr,strict-match": 0.01,
        "exact_match,flexible-extract": 0.5,
        "exact_match_stderr,flexible-extract": "N/A",
        "perplexity,none": 12,
        "sample_len": 5,
    }
    document = results(gsm8k_cot=row) | {"higher_is_better": {"gsm8k_cot": {"exact_match": True, "perplexity": False}}}
    scores, missing = scores_of(document)
    assert missing == {}
    assert {
        (score.task, score.metric, score.filter): (score.value, score.stderr, score.higher_is_better)
        for score in scores
    } == {
        ("gsm8k_cot", "exact_match", "strict-match"): (0.25, 0.01, True),
        ("gsm8k_cot", "exact_match", "flexible-extract"): (0.5, None, True),
        ("gsm8k_cot", "perplexity", "none"): (12, None, False),
    }


def test_a_groups_parts_name_it():
    rows = {name: {"acc,none": 0.5} for name in ("mmlu", "mmlu_stem", "mmlu_algebra")}
    document = results(**rows) | {"group_subtasks": {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_algebra"]}}
    assert [(score.task, score.group) for score in scores_of(document)[0]] == [
        ("mmlu", None),
        ("mmlu_stem", "mmlu"),
        ("mmlu_algebra", "mmlu_stem"),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, "N/A", None, True, []])
def test_what_is_no_number_is_missing_with_its_reason(value):
    scores, missing = scores_of(results(ifeval={"acc,none": value, "f1,none": 0}))
    assert [(score.metric, score.value) for score in scores] == [("f1", 0)]
    assert missing == {"ifeval-acc,none": f"lm_eval returned {value!r}"}


@pytest.mark.parametrize("stderr", [math.nan, "N/A", None])
def test_an_error_that_is_no_number_is_none(stderr):
    (score,), _ = scores_of(results(a={"acc,none": 1.0, "acc_stderr,none": stderr}))
    assert score.stderr is None


@pytest.mark.parametrize("row", [{}, {"alias": "a"}, {"acc,none": math.nan}])
def test_no_number_at_all_is_a_failure(row):
    with pytest.raises(EvaluationFailed, match="returned no number"):
        scores_of(results(a=row))


def test_coverage_counts_documents_once():
    samples = {"a": [{"doc_id": 0}, {"doc_id": 0}, {"doc_id": 1}], "b": [{"doc_id": 0}]}
    counts = {"a": {"original": 9, "effective": 3}, "b": {"original": 1, "effective": 1}}
    found = coverage_of({"samples": samples, "n-samples": counts})
    assert (found.attempted, found.scored) == (4, 3)


def leaf(path, *folders, name=None, fingerprint="f"):
    """A task whose data was read from cache ``folders``."""
    split = SimpleNamespace(cache_files=[{"filename": f"{folder}/x.arrow"} for folder in folders])
    split._fingerprint = fingerprint
    task = SimpleNamespace(dataset_path=path, dataset_name=name)
    return SimpleNamespace(config=task, dataset={"test": split}, task_name="mine")


def test_revisions_of_datasets():
    hub = leaf("cais/mmlu", f"/cache/default/0.0.0/{COMMIT}", name="algebra")
    own = leaf(None, "/cache/json/0.0.0", fingerprint="abc")
    group = SimpleNamespace(get_all_tasks=lambda: [hub, own])
    expected = {"dataset:cais/mmlu/algebra": COMMIT, "dataset:mine": "fingerprint:abc"}
    assert dataset_revisions([group]) == dataset_revisions([hub, own]) == expected
    assert dataset_revisions([SimpleNamespace(config=hub.config, dataset=None)]) == {}


@pytest.mark.parametrize(
    ("numbers", "expected"), [({"a": 0}, "0"), ({"a": 5, "b": 0, "c": 5}, "0,5"), ({"a": 0, "b": 10, "c": 5}, "0,5,10")]
)
def test_the_number_of_examples_that_was_used(numbers, expected):
    assert examples_of({"n-shot": numbers}) == {"prompt:num_fewshot": expected}
    assert examples_of({}) == {}
