"""Pruning the cache: only what a fetch put there, and no manifest of the store names."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest

from halos_eval.errors import BadInput, StoreError
from halos_eval.planning.prune_cache import unused
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import Item, Manifest, write_manifest

BEFORE = datetime.now(UTC) - timedelta(days=30)
ARC = "datasets/ai2_arc/ARC-Easy/0.0.0/abc"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def item(kind="dataset", path=ARC, repo="allenai/ai2_arc", revision="c" * 40):
    return Item(kind=kind, asked=path, repo=repo, revision=revision, bytes=1, digest="d", path=path, needed_by=("t",))


def model(commit):
    path = f"hub/models--org--base/snapshots/{commit * 40}"
    return item("model", path, "org/base", commit * 40)


def write_revision(cache, commit, files):
    """A revision of the model org/base in the hub's cache; files with equal content are one blob."""
    repo = cache / "hub" / "models--org--base"
    snapshot = repo / "snapshots" / (commit * 40)
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (repo / "blobs" / content).write_text(content)
        (snapshot / name).symlink_to(f"../../blobs/{content}")


def fetched(root, *items, days=40):
    """Write a manifest as `fetch` does; its copy is so old."""
    manifest = Manifest(suite="own", items=items)
    write_manifest(layout.manifest_url(root, "own"), manifest)
    return manifest, age(days)


def age(days):
    from halos_eval.hub import cache_root

    for path in cache_root().rglob("*"):
        if not path.is_symlink():
            stamp = datetime.now(UTC).timestamp() - days * 86400
            os.utime(path, (stamp, stamp))


def prune(root):
    for one in unused(root, BEFORE):
        one.remove(BEFORE)


def files(cache):
    found = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if not path.is_dir()}
    return {path for path in found if not path.startswith("halos-eval/")}


def test_only_what_a_fetch_put_there_and_no_manifest_names(root, cache):
    items = {
        ARC: item(),
        "modules/evaluate_modules/metrics/exact_match/abc": item(
            "metric", "modules/evaluate_modules/metrics/exact_match/abc", "evaluate-metric/exact_match"
        ),
        "nltk_data/tokenizers/punkt_tab.zip": item("nltk", "nltk_data/tokenizers/punkt_tab.zip", "nltk_data", None),
    }
    mine = ["datasets/ai2_arc/ARC-Easy/0.0.0/other/data", "nltk_data/tokenizers/other.zip", "hub/version.txt"]
    ours = [f"{ARC}/data", "modules/evaluate_modules/metrics/exact_match/abc/metric.py"]
    ours += ["nltk_data/tokenizers/punkt_tab.zip", "nltk_data/tokenizers/punkt_tab/english"]
    for name in (*mine, *ours):
        filesystem.write_bytes(str(cache / name), b"12345")
    fetched(root, *items.values())
    assert unused(root, BEFORE) == []
    fetched(root)
    found = unused(root, BEFORE)
    assert [(one.url.removeprefix(f"{cache}/"), one.size) for one in found[:3]] == [
        (ARC, 5), ("modules/evaluate_modules/metrics/exact_match/abc", 5), ("nltk_data/tokenizers/punkt_tab.zip", 10),
    ]  # fmt: skip
    assert files(cache) == {*mine, *ours}
    prune(root)
    assert files(cache) == set(mine)
    assert unused(root, BEFORE) == []
    assert len(list((cache / "halos-eval").iterdir())) == 1  # the copy of the store's manifest


def test_weights_that_only_an_old_revision_has(root, cache):
    write_revision(cache, "a", {"config.json": "same", "model.safetensors": "old weights"})
    write_revision(cache, "b", {"config.json": "same", "model.safetensors": "new"})
    fetched(root, model("a"))
    fetched(root, model("b"))
    found = unused(root, BEFORE)
    assert [one.size for one in found[:-1]] == [len("old weights")]
    prune(root)
    repo = "hub/models--org--base"
    snapshot = f"{repo}/snapshots/{'b' * 40}"
    expected = {f"{repo}/blobs/same", f"{repo}/blobs/new", f"{snapshot}/config.json", f"{snapshot}/model.safetensors"}
    assert files(cache) == expected


def test_a_later_copy_protects_its_items(root, cache):
    filesystem.write_bytes(str(cache / ARC / "data"), b"1")
    fetched(root, item())
    fetched(root)
    write_manifest(f"{root}/elsewhere.json", Manifest(suite="by-hand", items=(item(),)))
    assert [one.url for one in unused(root, BEFORE) if ARC in one.url] == []
    age(40)
    assert [one.url for one in unused(root, BEFORE) if ARC in one.url] == [str(cache / ARC)]


def test_a_store_without_a_manifest_is_not_the_right_one(root, cache):
    fetched(root, item())
    with pytest.raises(BadInput, match="has no manifest, so all fetched data would be removed"):
        unused(f"{root}/other", BEFORE)


def test_a_damaged_manifest_of_the_store_stops_it(root, cache):
    fetched(root, item())
    filesystem.write_bytes(layout.manifest_url(root, "other"), b"{")
    with pytest.raises(StoreError, match=r"other\.json is not a valid manifest"):
        unused(root, BEFORE)


@pytest.mark.parametrize("path", ["datasets", "datasets/ai2_arc", "halos-eval", "hub", "token", "nltk_data/tokenizers"])
@pytest.mark.parametrize("kind", ["dataset", "metric", "nltk", "file", "model"])
def test_a_copy_cannot_name_more_than_an_item(root, cache, kind, path):
    for name in (f"{ARC}/data", "hub/version.txt", "token", "nltk_data/tokenizers/other.zip"):
        filesystem.write_bytes(str(cache / name), b"mine")
    fetched(root, item(kind, path))
    fetched(root)
    before = files(cache)
    prune(root)
    assert files(cache) == before


def test_a_file_that_fetch_did_not_write_names_nothing(root, cache):
    filesystem.write_bytes(str(cache / ARC / "data"), b"mine")
    text = Manifest(suite="own", items=(item(),)).model_dump_json()
    filesystem.write_bytes(str(cache / "halos-eval" / "0123456789abcdef.json"), text.encode())
    fetched(root)
    assert unused(root, BEFORE) == []


@pytest.mark.parametrize("name", ["", "blobs", "snapshots"])
def test_a_repository_that_is_a_link_stays(root, cache, tmp_path, name):
    write_revision(cache, "a", {"config.json": "mine"})
    fetched(root, model("a"))
    fetched(root)
    place = cache / "hub" / "models--org--base" / name
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    before = sorted((tmp_path / "outside").rglob("*"))
    prune(root)
    assert sorted((tmp_path / "outside").rglob("*")) == before


def test_links_out_of_the_cache_are_not_followed(root, cache, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "blob").write_text("mine")
    write_revision(cache, "a", {"config.json": "ours"})
    (cache / "hub" / "models--org--base" / "snapshots" / ("a" * 40) / "model.safetensors").symlink_to(outside / "blob")
    (cache / "datasets").symlink_to(outside)
    (outside / "ai2_arc/ARC-Easy/0.0.0/abc").mkdir(parents=True)
    fetched(root, model("a"), item())
    fetched(root)
    prune(root)
    assert (outside / "blob").read_text() == "mine"
    assert (outside / "ai2_arc/ARC-Easy/0.0.0/abc").is_dir()
    assert not (cache / "hub" / "models--org--base" / "blobs" / "ours").exists()
