"""A judge that is served, in a plan: its job, its identity, its cost, and what is wrong with it."""

from __future__ import annotations

import pytest

from halos_eval.checkpoints import known
from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.checkpoints.weights import inspect
from halos_eval.config.cluster import load_cluster
from halos_eval.config.served_judge import ServedJudge, judge_choice
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput
from halos_eval.planning.costs import read_history
from halos_eval.planning.definition import Definitions
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.planning.progress import overview
from halos_eval.stages.judge.options import JudgeConfig
from halos_eval.stages.serve import ServeConfig
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Usage
from tests.doubles import finish, make_adapter, make_checkpoint, write_safetensors
from tests.stages.test_run import parse

CLUSTER = """
pools: {gpu: 8, judge: 1}
profiles: {default: {gpus: 1}, large: {gpus: 4}}
"""


@pytest.fixture
def model(tmp_path):
    """The judge's model."""
    return make_checkpoint(tmp_path / "models" / "prometheus" / "FINAL")


@pytest.fixture
def checkpoint(tmp_path):
    metadata = Metadata(profile="default")
    return Checkpoint(name="kto", location=str(make_checkpoint(tmp_path / "kto")), metadata=metadata)


@pytest.fixture
def plan(suite, checkpoint, root, model, tmp_path, monkeypatch):
    """``plan(more)`` plans AlpacaEval on a checkpoint, with ``more`` options of the judge."""
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))

    def plan(more="", name=model):
        suite(f"alpaca_eval: {{prompts: demo, reference: demo, judge: {{model: {name}{more}}}}}")
        return make_plan(load_suite("own"), checkpoint, root, load_cluster())

    return plan


def judge_of(plan):
    (job,) = [job for job in plan.jobs if job.stage == "judge"]
    return job


def test_the_stage_and_its_server(plan, model):
    job = judge_of(plan(", profile: large, max_model_len: 256"))
    assert (job.image, job.profile, job.gpus) == ("judge", "large", 4)
    config = parse(list(job.argv))
    assert isinstance(config, JudgeConfig)
    assert judge_choice(config.judge) == ServedJudge(model=str(model), profile="large", max_model_len=256)
    assert parse(list(job.server)) == ServeConfig(model=str(model), max_model_len=256, tensor_parallel_size=4)


def test_the_profile_is_the_suites_and_not_the_checkpoints(plan, suite, checkpoint, root, model):
    assert judge_of(plan()).profile == "default"
    suite(f"{{profile: large, alpaca_eval: {{prompts: demo, reference: demo, judge: {{model: {model}}}}}}}")
    found = make_plan(load_suite("own"), checkpoint, root, load_cluster())
    assert [job.profile for job in found.jobs] == ["default", "large"]


def test_both_commands_find_each_other(plan):
    stage, server = judge_of(plan()).with_server("/x")
    assert (stage.stage, stage.image, stage.gpus, stage.server) == ("judge", "judge", 0, ())
    assert (server.stage, server.image, server.gpus, server.server) == ("serve", "worker", 1, ())
    assert parse(list(stage.argv)).exchange == parse(list(server.argv)).exchange == "/x"


def test_other_weights_are_another_series_and_another_place_is_not(plan, model, tmp_path):
    first = judge_of(plan())
    assert first.identity.inputs["judge_weights"] == inspect(str(model)).digest
    copy = make_checkpoint(tmp_path / "copy")
    assert judge_of(plan(name=copy)).fingerprint == first.fingerprint
    write_safetensors(model / "model.safetensors", b"\x01" * 8)
    assert judge_of(plan()).fingerprint != first.fingerprint


@pytest.mark.parametrize("more", [", dtype: float32", ", max_model_len: 128"])
def test_settings_of_the_model_are_in_the_fingerprint(plan, more):
    assert judge_of(plan(more)).fingerprint != judge_of(plan()).fingerprint


def test_vllm_is_a_tool_of_its_series_but_not_of_the_judges_environment(plan):
    identity = judge_of(plan()).identity
    assert identity.packages == ("alpaca-eval", "vllm")
    assert identity.own_packages == ("alpaca-eval",)
    assert plan().jobs[0].identity.own_packages == ("vllm",)


def test_weights_are_read_once(plan, monkeypatch, root, model):
    read, reader = [], known.read_folder
    monkeypatch.setattr(known, "read_folder", lambda folder: read.append(folder) or reader(folder))
    assert judge_of(plan()).fingerprint == judge_of(plan()).fingerprint
    assert read.count(str(model)) == 1
    assert filesystem.exists(layout.judge_weights_url(root, str(model), None))


def test_a_suite_with_it_has_a_progress(plan, checkpoint, root, model):
    found = plan()
    save_plan(found, load_suite("own"), root)
    for job in found.jobs:
        finish(job)
    assert overview(root, [checkpoint], load_cluster()).progress["kto"]["own"].complete
    write_safetensors(model / "model.safetensors", b"\x01" * 8)
    assert overview(root, [checkpoint], load_cluster()).progress["kto"]["own"].missing == ("judge",)


def test_a_run_gets_another_name_if_the_judge_is_saved_again(plan, model):
    plan()
    before = Definitions(load_suite("own")).own
    assert Definitions(load_suite("own")).own == before
    write_safetensors(model / "model.safetensors", b"\x01" * 8)
    assert Definitions(load_suite("own")).own != before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/nowhere", "/nowhere is neither a folder nor a hub repository"),
        ("no-such-model", "no-such-model is neither a folder nor a hub repository"),
        ("s3://bucket/model", "object storage"),
    ],
)
def test_a_model_that_is_none(plan, name, words):
    with pytest.raises(BadInput, match=words):
        plan(name=name)


def test_an_adapter_is_rejected(plan, model, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", model)
    with pytest.raises(BadInput, match="is a LoRA adapter; expected full weights"):
        plan(name=adapter)


def test_an_unknown_profile_is_rejected(plan):
    with pytest.raises(BadInput, match="unknown profile 'huge'"):
        plan(", profile: huge")


def test_its_gpus_count_in_the_estimate(plan, checkpoint, root):
    found = plan(", profile: large")
    suite = load_suite("own")
    assert read_history(suite, root).of_plan(found).unknown == ("sample", "judge")
    save_plan(found, suite, root)
    for job in found.jobs:
        finish(job, usage=Usage(load_seconds=1800, work_seconds=900, resumed=0.5, price_usd=0, prompt_tokens=9))
    history = read_history(suite, root)
    forced = make_plan(suite, checkpoint, root, load_cluster(), force=True)
    for cost in (history.of_plan(forced), history.of_suite(suite, checkpoint, ["alpaca_eval"])):
        # An hour each: half of the pairs had been judged before.
        assert (cost.gpu_hours, cost.judge_dollars, cost.unknown) == (1 * 1 + 4 * 1, 0, ())
