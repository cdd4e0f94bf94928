"""The fetch stage without lm_eval: what it repeats, what it reports, and what the manifest records."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from halos_eval import hub
from halos_eval.checkpoints.weights import Weights, inspect
from halos_eval.config.suite import HarnessSettings, load_suite
from halos_eval.data import prompts
from halos_eval.errors import BadInput, DataUnavailable, Incomplete, StoreError
from halos_eval.stages import fetch as module
from halos_eval.stages.fetch import FetchConfig, fetch, unfetched
from halos_eval.stages.harness.options import harness_identity
from halos_eval.storage.manifest import Item, Manifest, Part, checkpoint_part, read_manifest
from halos_eval.storage.records import CheckpointRef
from tests.doubles import make_adapter, make_checkpoint

SUITE = {"alpaca_eval": {}, "tasks": {"gsm8k_cot": {}, "mmlu": {}}}
NEEDS = {"gsm8k_cot": ["gsm8k"], "mmlu": ["mmlu", "gsm8k"]}


class World:
    """A hub and its datasets: the requests it receives, and those it refuses."""

    def __init__(self, cache):
        self.cache = cache
        self.asked = []
        self.loaded = []
        self.refused = {}
        self.generation = 1

    def commit(self, kind, repo, branch=None):
        self.asked.append(repo)
        if repo in self.refused:
            raise self.refused[repo]
        return f"{repo}-{self.generation}"

    def hub_file(self, name, revision):
        path = self.cache / "hub" / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        return path, revision

    def fetch_task(self, config, fetcher):
        self.loaded.append(config.task)
        for repo in NEEDS[config.task]:
            commit = fetcher.commit("dataset", repo)
            folder = self.cache / "datasets" / commit
            folder.mkdir(parents=True, exist_ok=True)
            fetcher._add("dataset", repo, folder, repo=repo, revision=commit, bytes=1, digest="d")


@pytest.fixture
def world(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    made = World(tmp_path / "cache")

    def model(fetcher, repo, revision):
        commit = fetcher.commit("model", repo, revision)
        folder = made.cache / "hub" / commit.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{repo}@{revision}" if revision else repo
        fetcher._add("model", name, folder, repo=repo, revision=commit, bytes=1, digest=commit)

    monkeypatch.setattr(hub, "commit", made.commit)
    monkeypatch.setattr(prompts, "hub_file", made.hub_file)
    monkeypatch.setattr(module._Tasks, "fetch", lambda _, *given: made.fetch_task(*given))
    monkeypatch.setattr(module.Fetcher, "model", model)
    return made


@pytest.fixture
def config(tmp_path):
    """``config(suite, *checkpoints)``"""

    def make(suite=None, *checkpoints, **more):
        path = tmp_path / "halos.yaml"
        path.write_text(yaml.safe_dump(SUITE if suite is None else suite))
        return FetchConfig(
            suite=str(path), checkpoints=checkpoints, manifest=str(tmp_path / "store" / "m.json"), **more
        )

    return make


def commits(manifest):
    return {(item.kind, item.asked): item.revision for item in manifest.items}


def test_everything_is_noted_with_who_needs_it(world, config):
    manifest = fetch(config())
    assert read_manifest(config().manifest) == manifest
    assert {(item.kind, item.asked): item.needed_by for item in manifest.items} == {
        ("dataset", "gsm8k"): ("gsm8k_cot", "mmlu"),
        ("dataset", "mmlu"): ("mmlu",),
        ("file", "alpaca_eval.json"): ("alpaca_eval",),
        ("file", "alpaca_eval_gpt4_baseline.json"): ("alpaca_eval",),
        ("file", "df_gamed.csv"): ("alpaca_eval",),
    }
    assert set(manifest.parts) == {"alpaca_eval", "gsm8k_cot", "mmlu"}
    assert world.asked == ["tatsu-lab/alpaca_eval", "gsm8k", "mmlu"]


def test_what_is_staged_is_neither_asked_for_nor_loaded_again(world, config):
    before = fetch(config())
    world.asked.clear()
    world.loaded.clear()
    world.generation = 2
    assert fetch(config()) == before
    assert world.asked == world.loaded == []


def test_what_is_new_is_told_without_looking_into_the_cache(world, config, tmp_path):
    suite = load_suite(config().suite)
    assert unfetched(suite, ["lab/model"], Manifest(suite="halos")) == [*suite.parts, "checkpoint:lab/model"]
    manifest = fetch(config(None, "lab/model"))
    shutil.rmtree(world.cache)
    world.asked.clear()
    assert unfetched(suite, ["lab/model"], manifest) == []
    assert unfetched(suite, ["lab/model@v1"], manifest) == ["checkpoint:lab/model@v1"]
    assert unfetched(suite.keep(["mmlu"]), [], manifest) == []
    changed = {**SUITE, "tasks": {"gsm8k_cot": {"num_fewshot": 3}, "mmlu": {}, "arc_easy": {}}}
    assert set(unfetched(load_suite(config(changed).suite), [], manifest)) == {"gsm8k_cot", "arc_easy"}
    assert world.asked == []


def test_what_could_not_be_had_is_asked_for_again(world, config):
    world.refused["mmlu"] = DataUnavailable("it is gated")
    assert unfetched(load_suite(config().suite), [], fetch(config())) == ["mmlu"]


def test_another_manifest_is_pinned_anew_and_leaves_the_first_as_it_is(world, config):
    first = fetch(config())
    world.generation = 2
    second = fetch(config().model_copy(update={"manifest": f"{config().manifest}.2"}))
    assert set(commits(second).values()) == {"tatsu-lab/alpaca_eval-2", "gsm8k-2", "mmlu-2"}
    assert read_manifest(config().manifest) == first
    assert all(item.present for item in first.items)


def test_a_part_that_is_added_later_keeps_the_pins(world, config):
    fetch(config({"tasks": {"gsm8k_cot": {}}}))
    world.generation = 2
    world.loaded.clear()
    manifest = fetch(config())
    assert world.loaded == ["mmlu"]
    assert commits(manifest)["dataset", "gsm8k"] == "gsm8k-1"
    assert commits(manifest)["dataset", "mmlu"] == "mmlu-2"
    assert manifest.look("dataset", "gsm8k").needed_by == ("gsm8k_cot", "mmlu")


def test_only_some_parts(world, config):
    fetch(config(tasks=("mmlu",)))
    manifest = fetch(config(tasks=("gsm8k_cot",)))
    assert set(manifest.parts) == {"gsm8k_cot", "mmlu"}
    assert manifest.look("dataset", "gsm8k").needed_by == ("mmlu", "gsm8k_cot")


def test_a_lost_cache_is_filled_again_at_the_pins(world, config):
    before = fetch(config())
    (world.cache / "datasets" / "mmlu-1").rmdir()
    world.generation = 2
    world.loaded.clear()
    assert fetch(config()) == before
    assert world.loaded == ["mmlu"]
    assert (world.cache / "datasets" / "mmlu-1").is_dir()


def test_a_task_that_is_defined_otherwise_now_is_loaded_again(world, config):
    fetch(config())
    world.loaded.clear()
    fetch(config({**SUITE, "tasks": {"gsm8k_cot": {"num_fewshot": 3}, "mmlu": {}}}))
    assert world.loaded == ["gsm8k_cot"]


def test_what_cannot_be_had_is_told_and_costs_nothing_else(world, config):
    world.refused["mmlu"] = DataUnavailable("the dataset mmlu is gated:\n give HF_TOKEN")
    manifest = fetch(config())
    assert manifest.parts["mmlu"].reason == "the dataset mmlu is gated: give HF_TOKEN"
    assert [title for title, part in manifest.parts.items() if part.reason is None] == ["alpaca_eval", "gsm8k_cot"]
    assert all("mmlu" not in item.needed_by for item in manifest.items)
    world.refused.clear()
    world.loaded.clear()
    assert fetch(config()).parts["mmlu"].reason is None
    assert world.loaded == ["mmlu"]


def test_whatever_a_task_raises_is_its_reason(world, config, monkeypatch):
    def fetch_task(_, config, fetcher):
        if config.task == "mmlu":
            raise ModuleNotFoundError("No module named 'rouge_score'")
        world.fetch_task(config, fetcher)

    monkeypatch.setattr(module._Tasks, "fetch", fetch_task)
    manifest = fetch(config())
    assert manifest.parts["mmlu"].reason == "ModuleNotFoundError: No module named 'rouge_score'"
    assert manifest.parts["gsm8k_cot"].reason is None


def test_a_hub_out_of_reach_is_tried_again(world, config):
    world.refused["mmlu"] = Incomplete("the dataset mmlu is unavailable (ConnectError)")
    with pytest.raises(Incomplete, match=r"^mmlu: the dataset mmlu is unavailable .* Run it again"):
        fetch(config())
    kept = read_manifest(config().manifest)
    assert kept.parts["gsm8k_cot"].reason is None
    assert "ConnectError" in kept.parts["mmlu"].reason


def test_nothing_at_all(world, config):
    world.refused["gsm8k"] = DataUnavailable("gone")
    with pytest.raises(DataUnavailable, match="gsm8k_cot: gone; mmlu: gone"):
        fetch(config({"tasks": SUITE["tasks"]}))
    assert read_manifest(config().manifest).parts["mmlu"].reason == "gone"


def test_a_full_disk_is_no_tasks_fault(world, config, monkeypatch):
    def fetch_task(*_):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise DataUnavailable("the data of gsm8k_cot is unavailable") from error

    monkeypatch.setattr(module._Tasks, "fetch", fetch_task)
    with pytest.raises(StoreError, match="Free space there"):
        fetch(config())
    assert read_manifest(config().manifest) is None


def test_a_killed_stage_leaves_no_manifest(world, config, monkeypatch):
    def fetch_task(*_):
        raise SystemExit(143)

    monkeypatch.setattr(module._Tasks, "fetch", fetch_task)
    with pytest.raises(SystemExit):
        fetch(config())
    assert read_manifest(config().manifest) is None


def test_the_demo_needs_nothing(world):
    manifest = fetch(FetchConfig(suite="demo", tasks=("alpaca_eval",), manifest=str(world.cache / "m.json")))
    assert manifest.items == ()
    assert manifest.parts["alpaca_eval"].reason is None
    assert world.asked == []


ONLY_ALPACA = {"alpaca_eval": {}}


def test_models_on_the_hub_folders_and_bases_of_adapters(world, config, tmp_path):
    full = str(make_checkpoint(tmp_path / "full"))
    adapter = str(make_adapter(tmp_path / "adapter", "meta/base", revision="v2"))
    manifest = fetch(config(ONLY_ALPACA, full, adapter, "lab/model", "lab/model@v1"))
    models = {item.asked: (item.revision, item.needed_by) for item in manifest.items if item.kind == "model"}
    assert models == {
        "lab/model": ("lab/model-1", ("checkpoint:lab/model",)),
        "lab/model@v1": ("lab/model-1", ("checkpoint:lab/model@v1",)),
        "meta/base@v2": ("meta/base-1", (f"checkpoint:{adapter}",)),
    }
    assert manifest.needs(checkpoint_part(full)) == []


def test_a_checkpoint_that_is_gone_leaves_the_rest(world, config, tmp_path):
    manifest = fetch(config(ONLY_ALPACA, str(tmp_path / "gone"), "lab/model"))
    assert "is neither a folder nor a hub repository" in manifest.parts[checkpoint_part(str(tmp_path / "gone"))].reason
    assert manifest.parts[checkpoint_part("lab/model")].reason is None


def test_a_checkpoint_that_may_not_be_read_leaves_the_rest(world, config, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "/closed")

    monkeypatch.setattr(module.weights, "hub_model", refuse)
    manifest = fetch(config(ONLY_ALPACA, "/closed"))
    assert "Permission denied" in manifest.parts[checkpoint_part("/closed")].reason
    assert manifest.parts["alpaca_eval"].reason is None


def test_a_staged_model_is_read_from_its_folder_under_its_commit(world, config, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", "meta/base")
    manifest = fetch(config(ONLY_ALPACA, str(adapter), "lab/model"))
    world.generation = 2
    for name in ("hub/lab--model-1", "hub/meta--base-1"):
        make_checkpoint(world.cache / name)
    found = inspect("lab/model", None, manifest)
    assert found == Weights(name="model", model=str(world.cache / "hub/lab--model-1"), digest="hub:lab/model-1")
    based = inspect(str(adapter), None, manifest)
    assert based.model == str(world.cache / "hub/meta--base-1")
    assert based.adapter == str(adapter)
    with pytest.raises(DataUnavailable, match="has no model lab/other"):
        inspect("lab/other", None, manifest)
    (world.cache / "hub/lab--model-1/model.safetensors").unlink()
    with pytest.raises(BadInput, match="lab/model has no safetensors weights"):
        inspect("lab/model", None, manifest)


def job(staged=None, **options):
    checkpoint = CheckpointRef(name="m", location="m", digest="w")
    return harness_identity("gsm8k_cot", HarnessSettings(**options), None, None, checkpoint, staged)


def test_the_data_of_a_task_is_part_of_its_identity(world, config):
    manifest = fetch(config())
    assert job().inputs == {"model": "w"}
    assert job(manifest).inputs == {"model": "w", "data": manifest.digest("gsm8k_cot")}
    other = [item.model_copy(update={"digest": "e"}) for item in manifest.items]
    assert job(manifest.model_copy(update={"items": tuple(other)})).fingerprint != job(manifest).fingerprint


def test_a_task_that_needs_nothing_has_the_identity_that_it_has_without_a_manifest():
    manifest = Manifest(suite="s", parts={"gsm8k_cot": Part(definition="d")})
    assert job(manifest).fingerprint == job().fingerprint


def test_a_task_that_cannot_be_had_has_no_identity():
    manifest = Manifest(suite="s", parts={"gsm8k_cot": Part(definition="d", reason="it is gated")})
    with pytest.raises(DataUnavailable, match="it is gated"):
        job(manifest)


def test_a_set_of_prompts_is_known_by_the_manifest_alone(world, config):
    manifest = fetch(config(ONLY_ALPACA))
    expected = {item.asked: item.digest for item in manifest.items}
    for path in world.cache.rglob("*.json"):
        path.unlink()
    assert prompts.digest("alpaca_eval", "prompts", manifest) == expected["alpaca_eval.json"]
    assert prompts.digest("alpaca_eval", "calibration", manifest) == expected["df_gamed.csv"]


def test_prompts_are_read_at_their_pin(world, config, monkeypatch):
    manifest = fetch(config(ONLY_ALPACA))
    taken = []
    monkeypatch.setattr(prompts, "hub_file", lambda *args: taken.append(args) or (world.cache / "x", args[1]))
    (world.cache / "x").write_text(json.dumps([{"instruction": "a"}]))
    assert prompts.load("alpaca_eval", "prompts", manifest).revision == "tatsu-lab/alpaca_eval-1"
    assert taken == [("alpaca_eval.json", "tatsu-lab/alpaca_eval-1")]


TITLES = st.sampled_from("abc")
STAGED = st.lists(st.tuples(TITLES, st.lists(st.sampled_from("xyz"), unique=True)), max_size=8)


@given(STAGED)
def test_after_any_stagings_each_part_has_what_it_needed_last(stagings):
    manifest, last = Manifest(suite="s"), {}
    for title, needs in stagings:
        common = {"repo": "r", "revision": "c", "bytes": 0, "digest": "d", "path": "p", "needed_by": (title,)}
        items = [Item(kind="dataset", asked=need, **common) for need in needs]
        manifest = module._with(manifest, title, Part(definition=""), items)
        last[title] = set(needs)
    assert {title: {item.asked for item in manifest.needs(title)} for title in last} == last
    assert {item.asked for item in manifest.items} == set().union(*last.values())
    assert len({(item.kind, item.asked) for item in manifest.items}) == len(manifest.items)


def test_a_judge_on_the_hub_is_pinned_with_alpaca_eval(world, config):
    manifest = fetch(config({"alpaca_eval": {"judge": {"model": "lab/judge", "revision": "v2"}}}))
    assert manifest.look("model", "lab/judge@v2").needed_by == ("alpaca_eval",)
    assert manifest.look("file", "df_gamed.csv")
    judge = manifest.parts["alpaca_eval"]
    assert fetch(config({"alpaca_eval": {"judge": "gpt-4.1"}})).parts["alpaca_eval"] != judge


def test_every_judge_of_a_list_is_pinned(world, config):
    judges = ["gpt-4.1", {"model": "lab/judge", "revision": "v2"}]
    manifest = fetch(config({"alpaca_eval": {"judge": judges}}))
    assert manifest.look("model", "lab/judge@v2").needed_by == ("alpaca_eval",)


def test_a_judge_that_is_a_folder_needs_no_data(world, config, tmp_path):
    by_name = fetch(config({"alpaca_eval": {"judge": "gpt-4.1"}}))
    folder = fetch(config({"alpaca_eval": {"judge": {"model": str(make_checkpoint(tmp_path / "judge"))}}}))
    assert folder == by_name
