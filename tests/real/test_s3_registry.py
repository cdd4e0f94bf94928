"""Checkpoints in a bucket of a real S3 server: folders of them, and a list."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import yaml
from s3fs import S3FileSystem

from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.errors import DataUnavailable, StoreError
from halos_eval.storage import filesystem
from tests.checkpoints.behaviour import Behaviour, FolderLab, ListLab

pytestmark = pytest.mark.real


@pytest.fixture
def place(s3, monkeypatch):
    """The URL of an empty place in the bucket, with the keys in the environment."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    yield f"{s3.bucket}/{uuid4()}"
    S3FileSystem.clear_instance_cache()


@pytest.mark.slow
class TestFoldersInABucket(Behaviour):
    @pytest.fixture
    def lab(self, place, tmp_path):
        return FolderLab(place, tmp_path)

    def test_completing_an_incomplete_checkpoint_registers_it_later(self, lab):
        half = lab.begin("half")
        between = lab.registry.get(lab.add("between"))
        lab.finish("half")
        assert lab.registry.get(half).registered > between.registered


@pytest.mark.slow
class TestListInABucket(Behaviour):
    @pytest.fixture
    def lab(self, place, tmp_path):
        return ListLab(place, tmp_path)


def test_each_of_many_costs_two_listings_and_two_reads(place, tmp_path, monkeypatch):
    lab = FolderLab(place, tmp_path)
    files = lab.contents(halos_eval_yaml="tags: {method: kto}")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: lab.put(f"kto-{number}", files), range(100)))
    asked = []
    for name in ("entries", "read_bytes"):
        real = getattr(filesystem, name)
        monkeypatch.setattr(filesystem, name, lambda *words, name=name, real=real: asked.append(name) or real(*words))
    listed = open_registry(place).registered()
    assert (len(listed.checkpoints), listed.skipped) == (100, {})
    assert Counter(asked) == {"entries": 1 + 2 * 100, "read_bytes": 2 * 100}


def test_only_headers_of_weights_are_read(place, tmp_path, monkeypatch):
    lab = FolderLab(place, tmp_path)
    lab.add("kto")
    read = []
    real = filesystem.read_bytes
    monkeypatch.setattr(filesystem, "read_bytes", lambda *part: read.append(part) or real(*part))
    assert len(lab.registry.registered().checkpoints) == 1
    assert [(url.rsplit("/", 1)[1], *part) for url, *part in read] == [("model.safetensors", 0, 65536)]


def test_an_empty_bucket_is_a_registry_with_nothing_in_it(place):
    assert open_registry(place).registered() == ([], {})


def test_a_bucket_that_is_not_there(place):
    with pytest.raises(DataUnavailable, match="s3://nowhere does not exist"):
        open_registry("s3://nowhere/checkpoints").registered()
    with pytest.raises((DataUnavailable, StoreError), match=r"s3://nowhere/list\.yaml"):
        open_registry("s3://nowhere/list.yaml").registered()


@pytest.mark.parametrize(
    "wrong", [{"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, {"AWS_SECRET_ACCESS_KEY": "another-secret-key"}]
)
def test_a_bucket_that_does_not_answer_is_no_empty_night(place, monkeypatch, wrong):
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    for call in (open_registry(place).registered, lambda: open_registry(place).get("kto")):
        with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
            call()


def test_a_template_beside_the_weights_in_a_bucket(place, tmp_path):
    lab = FolderLab(place, tmp_path)
    found = lab.registry.get(lab.add("kto", yaml.dump({"chat_template": "mine.jinja"})))
    assert found.metadata.chat_template == f"{place}/kto/FINAL/mine.jinja"
