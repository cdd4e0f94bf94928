"""The manifest: finding items, errors for missing ones, and the digest of their content."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from halos_eval.errors import DataUnavailable, StoreError
from halos_eval.storage import filesystem
from halos_eval.storage.manifest import (
    Item,
    Manifest,
    Part,
    cached_path,
    digest_stored,
    read_manifest,
    write_manifest,
)


def item(asked="a", kind="dataset", **more):
    common = {"repo": "r/r", "revision": "c", "bytes": 1, "digest": "d", "path": f"{kind}/{asked}", "needed_by": ("t",)}
    return Item(kind=kind, asked=asked, **common | more)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def manifest():
    parts = {"t": Part(definition="1"), "gpqa": Part(definition="2", reason="it is gated")}
    return Manifest(
        suite="halos", parts=parts, items=(item("a"), item("b"), item("a", kind="metric", needed_by=("u",)))
    )


@pytest.mark.parametrize("path", ["", "/etc/passwd", "..", "a/../../b", "a/.."])
def test_no_path_leads_out_of_the_cache(path):
    with pytest.raises(ValidationError, match="is outside the cache"):
        item(path=path)


@given(st.text())
def test_whatever_path_is_taken_stays_below_the_cache(path):
    try:
        taken = item(path=path)
    except ValidationError:
        return
    assert os.path.normpath(f"/cache/{taken.path}").startswith("/cache/")


def test_an_item_is_found_by_kind_and_name(manifest):
    assert manifest.find("dataset", "a") == manifest.items[0]
    assert manifest.find("metric", "a") == manifest.items[2]
    assert manifest.look("file", "a") is None
    with pytest.raises(DataUnavailable, match=r"has no file a\. Run `halos-eval fetch`"):
        manifest.find("file", "a")


def test_an_unavailable_part_has_a_reason(manifest):
    assert manifest.needs("t") == list(manifest.items[:2])
    with pytest.raises(DataUnavailable, match=r"^it is gated$"):
        manifest.needs("gpqa")
    with pytest.raises(DataUnavailable, match=r"mmlu is not in the manifest\. Run `halos-eval fetch halos`"):
        manifest.digest("mmlu")


def test_the_digest_of_a_part_is_that_of_its_own_content(manifest):
    def digest(*items):
        return manifest.model_copy(update={"items": items}).digest("t")

    before = manifest.digest("t")
    same = (item("a", revision="another"), item("b", path="elsewhere"), item("c", needed_by=("u",)))
    assert digest(*reversed(same)) == before
    assert digest(item("a", digest="e"), item("b")) != before
    assert digest(item("a")) != before
    assert digest(item("a"), item("b", kind="metric")) != before


def test_a_part_is_ready_as_defined_and_where_the_cache_has_it(manifest, cache):
    (cache / "dataset" / "a").mkdir(parents=True)
    assert not manifest.ready("t", "1")
    (cache / "dataset" / "b").mkdir()
    assert manifest.ready("t", "1")
    assert not manifest.ready("t", "changed")
    assert not manifest.ready("gpqa", "2")
    assert not manifest.ready("mmlu", "1")


def test_what_this_machine_lacks_is_named(manifest, cache):
    with pytest.raises(DataUnavailable, match=f"r/r is not in the cache .{cache}/dataset/a.. Mount the cache"):
        manifest.items[0].open()


def test_writing_keeps_a_copy_in_the_cache_that_never_changes(manifest, cache, tmp_path):
    url = f"file://{tmp_path}/store/manifest.json"
    assert read_manifest(url) is None
    write_manifest(url, manifest)
    assert read_manifest(url) == read_manifest(str(cache / cached_path(manifest))) == manifest
    more = manifest.model_copy(update={"pins": {"dataset/r/r@main": "c"}})
    write_manifest(url, more)
    assert read_manifest(url) == more
    assert read_manifest(str(cache / cached_path(manifest))) == manifest


def test_nothing_new_is_not_written_again(manifest, cache, tmp_path):
    url = tmp_path / "manifest.json"
    write_manifest(str(url), manifest)
    before = url.stat().st_ino, (cache / cached_path(manifest)).stat().st_ino
    write_manifest(str(url), manifest)
    assert (url.stat().st_ino, (cache / cached_path(manifest)).stat().st_ino) == before


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"suite": "halos", "items": [{"path": "../x"}]}')
    with pytest.raises(StoreError, match=r"manifest.json is not a valid manifest of this version"):
        read_manifest(str(tmp_path / "manifest.json"))


@pytest.fixture
def fetched(cache):
    """A metric script in the cache, as an item that knows its digest, and its folder."""
    folder = cache / "metric" / "a"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.py").write_text("VALUE = 1")
    (folder / "deep" / "b.py").write_text("")
    return item("a", kind="metric", stored=digest_stored(folder)), folder


def test_what_is_in_the_cache_is_compared_with_what_was_fetched(fetched):
    one, folder = fetched
    assert one.open() == folder
    for name in ("a.pyc", "a.lock", "cache-0123.arrow", "a.json"):  # libraries add them
        (folder / name).write_text("added")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.cpython-311.pyc").write_text("added")
    assert one.open() == folder


@pytest.mark.parametrize("change", ["changed", "added", "removed"])
def test_data_that_was_changed_is_not_read(fetched, change):
    one, folder = fetched
    if change == "changed":
        (folder / "a.py").write_text("VALUE = 2")
    elif change == "added":
        (folder / "c.json").write_text("{}")
    else:
        (folder / "deep" / "b.py").unlink()
    with pytest.raises(DataUnavailable, match=r"is not as it was fetched.*Delete it there, and run `halos-eval fetch`"):
        one.open()


def test_a_manifest_of_version_1_has_no_digests_of_files(root, fetched):
    one, folder = fetched
    older = one.model_dump(mode="json", exclude={"stored"})
    text = json.dumps({"version": 1, "suite": "halos", "items": [older]})
    filesystem.write_bytes(f"{root}/old.json", text.encode())
    (found,) = read_manifest(f"{root}/old.json").items
    (folder / "a.py").write_text("VALUE = 2")
    assert found.open() == folder


def test_digests_of_metrics_in_a_manifest_of_version_2_are_not_compared(root, fetched):
    """They depend on the path of the cache."""
    one, folder = fetched
    older = one.model_dump(mode="json") | {"stored": "0" * 64}
    text = json.dumps({"version": 2, "suite": "halos", "items": [older]})
    filesystem.write_bytes(f"{root}/old.json", text.encode())
    (found,) = read_manifest(f"{root}/old.json").items
    assert found.open() == folder
