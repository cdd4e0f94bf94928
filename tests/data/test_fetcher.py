"""Fetching: pins do not change, digests are those of the content, and each part has its own items."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from halos_eval import hub
from halos_eval.data.fetcher import Fetcher
from halos_eval.digests import digest_file
from halos_eval.errors import BadInput, DataUnavailable, Incomplete

COMMITS = {"dataset/openai/gsm8k@main": "c1"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    packaged = ModuleType("datasets.packaged_modules")
    packaged._PACKAGED_DATASETS_MODULES = {"json": 1}
    monkeypatch.setitem(sys.modules, "datasets.packaged_modules", packaged)
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """What the hub was asked: each branch stands at a commit of its own."""
    calls = []

    def commit(kind, repo, branch=None):
        calls.append((kind, repo, branch))
        if repo == "evaluate-metric/rare":
            raise DataUnavailable("the hub has no space evaluate-metric/rare")
        return f"commit-{len(calls)}"

    monkeypatch.setattr(hub, "commit", commit)
    return calls


@pytest.fixture
def raw(monkeypatch, cache):
    """The hub's files in the cache: ``raw(name, text)`` writes one, whatever the commit."""
    folder = cache / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, name, **__: str(folder / name))
    return lambda name, text: (folder / name).write_text(text)


class Builder:
    """What load_dataset_builder gives."""

    def __init__(self, repo, commit, cache, features="text", **splits):
        self.repo_id = self.dataset_name = repo
        self.hash = commit
        self.cache_dir = str(cache / "datasets" / repo / commit)
        Path(self.cache_dir).mkdir(parents=True, exist_ok=True)
        place = f"hf://datasets/{repo}@{commit}/"
        self.config = SimpleNamespace(
            data_files={split: [url if "://" in url else place + url for url in urls] for split, urls in splits.items()}
        )
        self.info = SimpleNamespace(features=SimpleNamespace(to_dict=lambda: features))
        self.prepared = 0

    def download_and_prepare(self):
        self.prepared += 1


def test_a_branch_is_asked_for_once_and_what_is_pinned_not_at_all(asked):
    fetcher = Fetcher(dict(COMMITS))
    assert fetcher.commit("dataset", "openai/gsm8k") == "c1"
    assert [fetcher.commit("model", "a/b") for _ in range(2)] == ["commit-1"] * 2
    assert fetcher.commit("model", "a/b", "v2") == "commit-2"
    assert asked == [("model", "a/b", None), ("model", "a/b", "v2")]
    assert fetcher.pins == COMMITS | {"model/a/b@main": "commit-1", "model/a/b@v2": "commit-2"}


def build_at(cache, **content):
    """A stand-in for load_dataset_builder that gives the revision it is asked for."""
    return lambda path, name, revision: Builder(path, revision, cache, **content)


def test_a_dataset_is_built_at_its_pin_and_noted(cache, raw):
    raw("test.json", "12345")
    fetcher = Fetcher(dict(COMMITS))
    fetcher.begin("gsm8k_cot")
    builder = fetcher.dataset(build_at(cache, test=["test.json"]), "openai/gsm8k", "main", {})
    assert builder.hash == "c1"
    (item,) = fetcher.items()
    assert builder.prepared == 1
    assert json.loads(item.asked) == {"path": "openai/gsm8k", "name": "main"}
    assert (item.kind, item.repo, item.revision, item.bytes) == ("dataset", "openai/gsm8k", "c1", 5)
    assert (item.path, item.needed_by) == ("datasets/openai/gsm8k/c1", ("gsm8k_cot",))


def digest_at(cache, commit, **content):
    fetcher = Fetcher({"dataset/a/b@main": commit})
    fetcher.begin("t")
    fetcher.dataset(build_at(cache, **content), "a/b", None, {})
    (item,) = fetcher.items()
    return item.digest


def test_the_digest_is_that_of_the_content_not_of_the_commit(cache, raw):
    raw("test.json", "1")
    raw("more.json", "2")
    before = digest_at(cache, "c1", test=["test.json"])
    assert digest_at(cache, "c2", test=["test.json"]) == before
    assert digest_at(cache, "c1", validation=["test.json"]) != before
    assert digest_at(cache, "c1", test=["test.json", "more.json"]) != before
    assert digest_at(cache, "c1", test=["test.json"], features="label") != before
    raw("test.json", "3")
    assert digest_at(cache, "c1", test=["test.json"]) != before


def test_what_was_cached_before_is_not_taken_for_the_pinned_commit(cache):
    """Without a hub, datasets gives whatever it has cached last."""
    fetcher = Fetcher(dict(COMMITS))
    fetcher.begin("gsm8k_cot")
    with pytest.raises(Incomplete, match="dataset openai/gsm8k was not downloaded at commit c1"):
        fetcher.dataset(lambda path, *_, **__: Builder(path, "older", cache), "openai/gsm8k", "main", {})


def test_a_revision_that_a_task_names_is_pinned_as_well(asked, cache, raw):
    raw("x.json", "")
    fetcher = Fetcher({})
    fetcher.begin("t")
    fetcher.dataset(build_at(cache, test=["x.json"]), "a/b", None, {"revision": "refs/convert/parquet"})
    (item,) = fetcher.items()
    assert asked == [("dataset", "a/b", "refs/convert/parquet")]
    assert item.revision == "commit-1"
    assert json.loads(item.asked)["revision"] == "refs/convert/parquet"


@pytest.mark.parametrize(("url", "noted"), [("/folder/x.json", 0), ("https://a.example/x.json", 1)])
def test_files_of_ones_own_are_not_staged_and_those_from_elsewhere_are(cache, url, noted):
    fetcher = Fetcher({})
    fetcher.begin("t")
    made = Builder("json", "h", cache)
    made.config.data_files = {"test": [url]}
    made.repo_id = None
    assert fetcher.dataset(lambda *_, **__: made, "json", None, {"data_files": url}) is made
    assert [item.repo for item in fetcher.items()] == ["json"] * noted


def test_alpaca_evals_files(monkeypatch, cache, asked):
    file = cache / "hub" / "alpaca_eval.json"
    file.parent.mkdir()
    file.write_text("[]")
    taken = []
    monkeypatch.setattr("halos_eval.data.prompts.hub_file", lambda *args: taken.append(args) or (file, args[1]))
    fetcher = Fetcher({})
    fetcher.begin("alpaca_eval")
    fetcher.file("alpaca_eval.json")
    (item,) = fetcher.items()
    assert taken == [("alpaca_eval.json", "commit-1")]
    assert asked == [("dataset", "tatsu-lab/alpaca_eval", None)]
    assert (item.digest, item.bytes, item.path) == (digest_file(file), 2, "hub/alpaca_eval.json")


def test_a_metric_may_be_in_one_of_three_namespaces(asked):
    fetcher = Fetcher({})
    assert fetcher._metric_repository("code_eval") == ("evaluate-metric/code_eval", "commit-1")
    assert fetcher._metric_repository("rare") == ("evaluate-comparison/rare", "commit-3")
    assert fetcher._metric_repository("lab/own") == ("lab/own", "commit-4")
    assert len(asked) == 4


def test_an_unknown_metric_is_reported_with_the_error_of_the_first_namespace(monkeypatch):
    def commit(kind, repo, _):
        raise DataUnavailable(f"the hub has no {kind} {repo}")

    monkeypatch.setattr(hub, "commit", commit)
    with pytest.raises(DataUnavailable, match="the hub has no space evaluate-metric/none"):
        Fetcher({})._metric_repository("none")


def test_what_failed_unseen_is_the_parts_reason(monkeypatch):
    """lm_eval catches what a metric raises, and goes on without one until it scores."""
    for name in ("evaluate", "evaluate.config", "evaluate.loading"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["evaluate.loading"].HubEvaluationModuleFactory = None
    sys.modules["evaluate"].config = sys.modules["evaluate.config"]
    monkeypatch.setattr(hub, "commit", lambda *_: (_ for _ in ()).throw(DataUnavailable("no such space")))
    fetcher = Fetcher({})
    fetcher.begin("t")
    with pytest.raises(DataUnavailable):
        fetcher.metric(lambda *_, **__: None, "none", {})
    with pytest.raises(DataUnavailable, match="no such space"):
        fetcher.items()
    fetcher.begin("u")
    assert fetcher.items() == []


@pytest.mark.parametrize("line", ["import lm_eval.tasks.some.deep", "from lm_eval.tasks.some import deep"])
def test_a_module_that_loads_when_it_is_imported_is_imported_again_for_the_next_part(
    line, cache, raw, monkeypatch, tmp_path
):
    """It is imported from a package, by a module that is imported just now itself."""
    raw("x.json", "")
    fetcher = Fetcher({"dataset/a/b@main": "c"})
    folder = tmp_path / "path" / "lm_eval" / "tasks" / "some"
    folder.mkdir(parents=True)
    (folder / "deep.py").write_text("import shared_with_the_test\nshared_with_the_test.load()\n")
    (folder / "utils.py").write_text(f"{line}\n")
    monkeypatch.syspath_prepend(tmp_path / "path")
    shared = ModuleType("shared_with_the_test")
    shared.load = lambda: fetcher.dataset(build_at(cache, test=["x.json"]), "a/b", None, {})
    monkeypatch.setitem(sys.modules, shared.__name__, shared)
    try:
        for part in ("first", "second"):
            fetcher.begin(part)
            importlib.import_module("lm_eval.tasks.some.utils")
            assert [item.needed_by for item in fetcher.items()] == [(part,)]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
            del sys.modules[name]


def test_models_are_fetched_whole_but_for_what_is_not_loaded(monkeypatch, cache, asked):
    names = ["config.json", "model.safetensors", "README.md", "pytorch_model.bin", "tokenizer.json"]
    folder = cache / "hub" / "models--a--b" / "snapshots" / "commit-1"
    folder.mkdir(parents=True)
    wanted = []

    def download(repo, revision, allow_patterns):
        wanted.extend(allow_patterns)
        for name in allow_patterns:
            (folder / name).write_text("12")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("halos_eval.checkpoints.weights.inspect", lambda *_: None)
    fetcher = Fetcher({})
    fetcher.begin("checkpoint:a/b@v1")
    fetcher.model("a/b", "v1")
    (item,) = fetcher.items()
    assert wanted == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (item.asked, item.revision, item.digest, item.bytes) == ("a/b@v1", "commit-1", "commit-1", 6)


def test_a_model_without_weights_that_are_loaded(monkeypatch, asked):
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename="pytorch_model.bin", size=8)], sha="commit-1")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    fetcher = Fetcher({})
    fetcher.begin("checkpoint:a/b")
    with pytest.raises(BadInput, match="a/b has no safetensors weights"):
        fetcher.model("a/b", None)
    assert asked
