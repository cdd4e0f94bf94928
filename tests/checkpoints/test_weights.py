"""Checkpoints: safe names, complete weights, and a digest of exactly what is scored."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.checkpoints.weights import inspect, short_name, to_fetch
from halos_eval.errors import BadInput, DataUnavailable, StoreError
from halos_eval.storage.layout import check_name
from halos_eval.storage.manifest import Manifest
from tests.doubles import lora, make_adapter, make_checkpoint, write_safetensors, write_tensors

# Whatever is hard on a path, a shell, a label or a Jinja template, beside harmless letters.
HARD = st.lists(
    st.sampled_from([*"abZ09._-/", "..", "__", " ", "\n", "~", "$", ";", "{{", "\\", "é", "\0"]), max_size=8
)


@pytest.fixture
def folder(tmp_path):
    return make_checkpoint(tmp_path / "kto" / "FINAL")


def inspect_error(model, kind=BadInput):
    with pytest.raises(kind) as caught:
        inspect(str(model))
    return str(caught.value)


@given(st.text() | HARD.map("".join))
def test_a_name_is_refused_or_stays_below_its_folder(name):
    try:
        check_name(name)
    except BadInput:
        return
    parts = PurePosixPath("/store", name).relative_to("/store").parts
    assert "/".join(parts) == name
    assert 1 <= len(parts) <= 4
    assert not {"..", "."} & set(parts)
    assert all(part[0].isalnum() for part in parts)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")


@pytest.mark.parametrize("name", ["kto", "llama3-8b_kto.v2", "team/llama/kto/FINAL", "0", "a" * 128])
def test_usual_names_are_taken(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../kto", "/etc", "a//b", "a/", ".hidden", "-rf", "a b", "a__b", "a;b", "a\n", "a/b/c/d/e"]
)
def test_unusual_names_are_refused(name):
    with pytest.raises(BadInput, match=re.escape(repr(name))):
        check_name(name)


@pytest.mark.parametrize(
    ("location", "name"),
    [("/x/kto/FINAL", "kto"), ("/x/kto/FINAL/", "kto"), ("kto", "kto"), ("a/b", "b"), ("FINAL", "FINAL")],
)
def test_the_short_name_is_halos_own(location, name):
    assert short_name(location) == name


def test_a_complete_folder(folder):
    found = inspect(str(folder))
    assert (found.name, found.model, found.revision, found.adapter) == ("kto", str(folder), None, None)
    assert len(found.digest) == 64
    assert found.tokenizer == str(folder)


def test_a_file_is_no_checkpoint(folder):
    assert "is a file" in inspect_error(folder / "config.json")


def test_a_folder_without_a_configuration(folder):
    (folder / "config.json").unlink()
    assert "expected config.json" in inspect_error(folder)


def test_a_shard_that_is_not_there_yet(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    message = inspect_error(folder)
    assert "model-00002-of-00002.safetensors is missing" in message
    assert "Wait until it is saved" in message
    write_safetensors(folder / "model-00002-of-00002.safetensors")
    assert inspect(str(folder)).name == "kto"


@pytest.mark.parametrize("index", ['{"weight_map": {', "[]", "{}", '{"weight_map": {}}'])
def test_an_index_that_names_no_weights(folder, index):
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in inspect_error(folder)


def test_a_shard_is_looked_for_in_the_folder_only(folder):
    write_safetensors(folder.parent / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    assert "is missing" in inspect_error(folder)


@given(data=st.data())
def test_weights_cut_anywhere_are_noticed(data, tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp("cut"))
    whole = (folder / "model.safetensors").read_bytes()
    kept = data.draw(st.integers(0, len(whole) - 1))
    (folder / "model.safetensors").write_bytes(whole[:kept])
    assert "is truncated" in inspect_error(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 64,  # space that was reserved and never written
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": {}}',
        struct.pack("<Q", 26) + b'{"a":{"data_offsets":[0]}}',
    ],
)
def test_what_is_no_safetensors_file(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "not a safetensors file" in inspect_error(folder)


def test_weights_of_another_format(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = inspect_error(folder)
    assert "Convert pytorch_model.bin to safetensors" in message
    assert "to safetensors" in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_digest_covers_what_is_scored(folder, name):
    before = inspect(str(folder)).digest
    if name == "model.safetensors":
        write_safetensors(folder / name, b"\x01" + b"\0" * 7)
    else:
        (folder / name).write_text('{"changed": 1}')
    assert inspect(str(folder)).digest != before


@pytest.mark.parametrize(
    "name", ["generation_config.json", "chat_template.jinja", "vocab.json", "tokenizer_config.json", "spiece.model"]
)
def test_the_digest_covers_what_is_scored_and_new(folder, name):
    before = inspect(str(folder)).digest
    (folder / name).write_text("{}")
    assert inspect(str(folder)).digest != before


def test_the_digest_covers_nothing_else(folder):
    before = inspect(str(folder)).digest
    for name in ("README.md", "halos_eval.yaml", "optimizer.pt", "training_args.bin", "trainer_state.json"):
        (folder / name).write_text("new")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    moved = folder.rename(folder.with_name("copy"))
    assert inspect(str(moved)).digest == before


def test_an_adapter(tmp_path, folder):
    adapter = make_adapter(tmp_path / "lora" / "FINAL", folder, r=9)
    found = inspect(str(adapter))
    base = inspect(str(folder))
    assert (found.name, found.model, found.adapter) == ("lora", str(folder), str(adapter))
    assert found.adapter_rank == 16
    assert found.digest != base.digest
    assert found.tokenizer == str(folder)
    (adapter / "tokenizer_config.json").write_text("{}")
    assert inspect(str(adapter)).tokenizer == str(adapter)


@pytest.mark.parametrize("part", ["base", "adapter"])
def test_an_adapters_digest_covers_both(tmp_path, folder, part):
    adapter = make_adapter(tmp_path / "lora", folder)
    before = inspect(str(adapter)).digest
    if part == "base":
        write_safetensors(folder / "model.safetensors", b"other   ")
    else:
        write_tensors(adapter / "adapter_model.safetensors", lora(), b"other")
    assert inspect(str(adapter)).digest != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"r": 0}, "LoRA rank 0 is not supported"),
        ({"r": 513}, "LoRA rank 513 is not supported by vLLM; expected 1 to 512"),
        ({"r": None}, "LoRA rank None is not supported"),
        ({"rank_pattern": {"(": 8}}, "rank_pattern has a key that is no regular expression"),
        ({"rank_pattern": {"(([a-z])+.)+[A-Z]([a-z])+$": 8}}, "rank_pattern has the key '(([a-z])+.)+[A-Z]([a-z])+$'"),
        ({"rank_pattern": {"(.+)+x": 8}}, "rank_pattern has the key '(.+)+x'"),
        ({"rank_pattern": {".*.*.*.*x": 8}}, "rank_pattern has the key '.*.*.*.*x'"),
        ({"base_model_name_or_path": "/nowhere"}, "/nowhere"),
    ],
)
def test_adapters_that_cannot_be_applied(tmp_path, folder, changes, message):
    assert message in inspect_error(make_adapter(tmp_path / "lora", folder, **changes))


def test_an_adapter_without_its_weights(tmp_path, folder):
    adapter = make_adapter(tmp_path / "lora", folder)
    (adapter / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in inspect_error(adapter)


def test_an_adapter_of_an_adapter(tmp_path, folder):
    first = make_adapter(tmp_path / "first", folder)
    assert "is an adapter itself" in inspect_error(make_adapter(tmp_path / "second", first))
    own = tmp_path / "own"
    assert "is an adapter itself" in inspect_error(make_adapter(own, own))


def test_an_adapters_configuration_that_is_no_json(tmp_path, folder):
    adapter = make_adapter(tmp_path / "lora", folder)
    (adapter / "adapter_config.json").write_text("{")
    assert "is not valid JSON" in inspect_error(adapter)


@pytest.mark.parametrize("model", ["/nowhere/kto", "./nowhere", "../kto", "kto", "a/b/c", "a b/c", "-x/y"])
def test_what_is_neither_folder_nor_repository(model):
    assert "is neither a folder nor a hub repository" in inspect_error(model)


def test_a_repository_that_the_hub_does_not_give(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = inspect_error("nobody/nothing", DataUnavailable)
    for word in ("nobody/nothing", "spelling", "HF_ENDPOINT", "HF_TOKEN"):
        assert word in message


def test_a_folder_that_looks_like_a_repository_is_a_folder(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "team" / "model")
    monkeypatch.chdir(tmp_path)
    assert inspect("team/model").model == "team/model"
    assert Path("team/model").is_dir()


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path / "kto")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("halos_eval.checkpoints.weights._digest_scored", refuse)
    with pytest.raises(BadInput, match=f"{folder} is not readable by user"):
        inspect(str(folder))


def test_a_file_that_is_refused_by_the_disk_is_named(tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path / "kto")

    def refuse(url, *_):
        raise StoreError(f"{url}: refused") from PermissionError(13, "Permission denied", url)

    monkeypatch.setattr("halos_eval.storage.filesystem.read_bytes", refuse)
    assert f"{folder}/model.safetensors is not readable by user" in inspect_error(folder)


def test_a_header_that_is_long_is_read_whole_and_an_endless_one_not_at_all(folder, monkeypatch):
    path = folder / "model.safetensors"
    tensors = {f"layer.{number}": {"data_offsets": [0, 8]} for number in range(3000)}
    text = json.dumps(tensors).encode()
    assert len(text) > 64 * 1024
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    assert inspect(str(folder)).name == "kto"
    monkeypatch.setattr("halos_eval.checkpoints.safetensors.LONGEST_HEADER", len(text) - 1)
    assert "is truncated or not a safetensors file" in inspect_error(folder)


@pytest.mark.parametrize("url", ["gs://bucket/kto/FINAL", "abfs://bucket/kto/FINAL", "https://host/kto"])
def test_other_object_storage_is_rejected_with_a_remedy(url):
    assert inspect_error(url) == (
        f"{url} cannot be read; expected a folder, s3://BUCKET/PREFIX or NAMESPACE/NAME on the hub. Copy the weights "
        "to one of these"
    )


def test_weights_in_folders_need_no_staging(folder, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", folder)
    assert to_fetch(str(folder)) is None
    assert to_fetch(str(adapter)) is None


def test_what_is_on_the_hub_is_staged_and_so_is_an_adapters_base(tmp_path):
    adapter = make_adapter(tmp_path / "adapter", "meta/base", revision="v2")
    assert to_fetch("lab/model") == "lab/model"
    assert to_fetch("lab/model", "main") == "lab/model@main"
    assert to_fetch(str(adapter)) == str(adapter)


@pytest.mark.parametrize(
    ("model", "words"),
    [("gs://bucket/kto", "cannot be read; expected a folder, s3://"), ("/none", "is neither a folder nor")],
)
def test_weights_that_cannot_be_loaded_are_reported_before_fetching(model, words):
    with pytest.raises(BadInput, match=words):
        to_fetch(model)


def test_a_removed_folder_is_not_fetched(tmp_path):
    with pytest.raises(BadInput, match="is neither a folder nor a hub repository"):
        inspect(str(tmp_path / "kto" / "FINAL"), manifest=Manifest(suite="demo"))
