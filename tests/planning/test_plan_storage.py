"""Checkpoints in object storage: fetched, planned under the identity of their content, and loaded from the copy."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

import pytest

from halos_eval.checkpoints import weights
from halos_eval.checkpoints.download import _remove
from halos_eval.checkpoints.known import Carried
from halos_eval.checkpoints.metadata import from_location
from halos_eval.checkpoints.weights import inspect
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.planning.jobs import fetch_job
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.planning.progress import overview, some_stage_loads
from halos_eval.stages.fetch import fetch
from halos_eval.stages.on_disk import on_disk
from halos_eval.stages.sample import SampleConfig
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import write_manifest
from tests.doubles import finish, make_adapter, make_checkpoint, make_manifest, write_safetensors
from tests.doubles.s3 import bucket, upload
from tests.stages.test_run import parse

SUITE = load_suite("demo")
KUBERNETES = {
    "namespace": "n",
    "images": {"worker": "w", "judge": "j"},
    "serviceAccountName": "s",
    "weightsGib": 7,
    "volumes": {"cache": {"mountPath": "/cache", "persistentVolumeClaim": "cache"}},
}


@pytest.fixture(scope="module")
def server():
    with bucket() as url:
        yield url


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    return make_checkpoint(tmp_path / "kto" / "FINAL")


@pytest.fixture
def url(server, folder):
    return upload(folder, f"{server}/{uuid4()}/kto/FINAL")


@pytest.fixture
def fetched(root):
    """``fetched(url)`` runs the job that fetches a checkpoint, and returns the checkpoint. All data is pinned."""
    write_manifest(layout.manifest_url(root, "demo"), make_manifest(SUITE))

    def fetched(url):
        checkpoint = from_location(url)
        job = fetch_job(SUITE, checkpoint, root, load_cluster())
        fetch(parse(list(job.argv)))
        return checkpoint

    return fetched


@pytest.fixture
def plan(root):
    return lambda checkpoint: make_plan(SUITE, checkpoint, root, load_cluster())


def configs(plan):
    return [parse(list(job.argv)) for job in plan.jobs if job.stage != "judge"]


def read_nothing(*words):
    pytest.fail("weights were read")


def test_the_plan_is_that_of_the_same_weights_on_a_disk(url, folder, fetched, plan, cache):
    found, expected = plan(fetched(url)), plan(from_location(str(folder)))
    assert [job.fingerprint for job in found.jobs] == [job.fingerprint for job in expected.jobs]
    assert found.checkpoint == expected.checkpoint.model_copy(update={"location": url})
    assert found.checkpoint.name == "kto"
    for config in configs(found):
        assert Path(config.model).is_relative_to(cache / "halos-eval" / "weights")
        assert config.location == url
        assert inspect(config.model).digest == found.checkpoint.digest


def test_a_copy_without_a_chat_template(server, folder, fetched, plan):
    (folder / "tokenizer_config.json").write_text("{}")
    found = plan(fetched(upload(folder, f"{server}/{uuid4()}/kto/FINAL")))
    assert "kto has no chat template" in found.unavailable["alpaca_eval"]
    assert {job.stage for job in found.jobs} == {"harness"}


def test_before_it_is_fetched_its_content_is_not_known(url, folder, plan, fetched):
    with pytest.raises(DataUnavailable, match=rf"the content of {url} is not known: `halos-eval fetch` copies it"):
        plan(from_location(url))
    checkpoint = fetched(url)
    write_safetensors(folder / "model.safetensors", b"trained longer")
    upload(folder, url)
    with pytest.raises(DataUnavailable, match=rf"the content of {url} is not known any more"):
        plan(checkpoint)
    assert plan(fetched(url)).checkpoint.digest == inspect(str(folder)).digest


def test_a_checkpoint_that_was_deleted_is_named(url, fetched, plan):
    checkpoint = fetched(url)
    filesystem.delete(url)
    with pytest.raises(BadInput, match=rf"{url} does not exist or is empty"):
        plan(checkpoint)


def test_the_copy_is_made_again_after_it_was_removed(url, fetched, plan, cache):
    first = plan(fetched(url))
    shutil.rmtree(cache / "halos-eval" / "weights")
    again = plan(fetched(url))
    assert [job.fingerprint for job in again.jobs] == [job.fingerprint for job in first.jobs]
    assert [config.model for config in configs(again)] == [config.model for config in configs(first)]
    assert Path(configs(first)[0].model).is_dir()


def test_a_cluster_has_the_copy_in_its_cache_within_its_limit(url, fetched, plan, root, tmp_path, monkeypatch):
    def cluster(kubernetes):
        file = {"pools": {"gpu": 1, "judge": 1}, "profiles": {"default": {}, "cpu": {}}, "kubernetes": kubernetes}
        (tmp_path / "cluster.yaml").write_text(json.dumps(file))

    checkpoint = fetched(url)
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    cluster(KUBERNETES)
    job = fetch_job(SUITE, checkpoint, root, load_cluster())
    assert f"--store={root}" in job.argv
    assert "--weights-gib=7" in job.argv
    for config in configs(plan(checkpoint)):
        assert config.model.startswith("/cache/halos-eval/weights/")
    cluster(KUBERNETES | {"volumes": {}})
    with pytest.raises(BadInput, match=r"the pods share no volume cache for a copy of it\. Add kubernetes\.volumes"):
        plan(checkpoint)


def test_a_chat_template_beside_the_weights_is_read_from_the_copy(server, tmp_path, fetched, plan):
    folder = make_checkpoint(tmp_path / "kto" / "FINAL", halos_eval_yaml="chat_template: ./mine.jinja")
    (folder / "mine.jinja").write_text("{{ messages }}")
    found = plan(fetched(upload(folder, f"{server}/{uuid4()}/kto")))
    templates = {config.chat_template for config in configs(found)} - {None}
    assert templates == {f"{configs(found)[0].model}/mine.jinja"}
    assert Path(*templates).read_text() == "{{ messages }}"


def test_an_adapter_in_object_storage_has_its_base_in_a_folder(server, folder, tmp_path, fetched, plan):
    adapter = make_adapter(tmp_path / "lora", folder)
    found = plan(fetched(upload(adapter, f"{server}/{uuid4()}/lora")))
    assert found.checkpoint.digest == inspect(str(adapter)).digest
    config = configs(found)[0]
    assert inspect(config.model, read=Carried(config.known)).digest == found.checkpoint.digest


def test_an_adapter_with_a_base_in_object_storage_is_rejected(url, tmp_path):
    with pytest.raises(BadInput, match=rf"its base {url} is in object storage; expected a folder or a hub repository"):
        inspect(str(make_adapter(tmp_path / "lora", url)))


def test_what_is_complete_is_not_copied_again(url, fetched, plan, root):
    checkpoint, cluster = fetched(url), load_cluster()
    assert some_stage_loads(root, checkpoint, cluster, "demo", [])
    made = plan(checkpoint)
    save_plan(made, SUITE, root)
    for job in made.jobs:
        finish(job)
        loaded = job.title != made.jobs[-1].title
        assert some_stage_loads(root, checkpoint, cluster, "demo", []) == loaded
    assert not some_stage_loads(root, checkpoint, cluster, "demo", ["alpaca_eval", "demo_cloze"])
    assert fetch_job(SUITE, checkpoint, root, cluster, loaded=False) is None
    assert overview(root, [checkpoint], cluster).progress["kto"]["demo"].complete
    filesystem.write_bytes(f"{url}/tokenizer.json", b'{"another": 1}')
    assert some_stage_loads(root, checkpoint, cluster, "demo", [])


# Digests that a stage gets from the plan


@pytest.mark.parametrize("kind", ["folder", "adapter", "s3"])
def test_a_stage_reads_no_weights_for_a_digest_that_the_plan_has_computed(
    url, folder, tmp_path, fetched, plan, monkeypatch, kind
):
    locations = {"folder": str(folder), "adapter": str(make_adapter(tmp_path / "lora", folder))}
    made = plan(fetched(url) if kind == "s3" else from_location(locations[kind]))
    monkeypatch.setattr(weights, "digest_files", read_nothing)
    for config in configs(made):
        assert inspect(config.model, read=Carried(config.known)).digest == made.checkpoint.digest


@pytest.mark.parametrize("change", ["time", "size", "new file", "removed file", "name"])
def test_a_stage_reads_the_weights_if_any_file_is_not_as_it_was(folder, plan, change):
    config = configs(plan(from_location(str(folder))))[0]
    digest = inspect(config.model).digest
    path = folder / "model.safetensors"
    if change == "time":
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    elif change == "size":
        write_safetensors(path, b"trained longer")
    elif change == "new file":
        (folder / "vocab.json").write_text("{}")
    elif change == "removed file":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "tokenizer.json").rename(folder / "tokenizer_config.json")
    found = inspect(config.model, read=Carried(config.known))
    assert found.digest == inspect(config.model).digest
    assert (found.digest == digest) == (change == "time")


def test_a_copy_of_the_folder_on_another_machine_is_not_read(folder, tmp_path, plan, monkeypatch):
    """The inodes are others there, and the path may be."""
    made = plan(from_location(str(folder)))
    moved = shutil.copytree(folder, tmp_path / "mounted")
    monkeypatch.setattr(weights, "digest_files", read_nothing)
    assert inspect(str(moved), read=Carried(configs(made)[0].known)).digest == made.checkpoint.digest


def test_a_command_by_hand_copies_its_checkpoint_and_keeps_it_while_it_runs(url, folder):
    with on_disk(SampleConfig(model=url)) as config:
        assert inspect(config.model, read=Carried(config.known)).digest == inspect(str(folder)).digest
        assert config.location == url
        assert not _remove(Path(config.model))
    assert _remove(Path(config.model))
    with on_disk(SampleConfig(model=str(folder))) as config:
        assert config == SampleConfig(model=str(folder))
