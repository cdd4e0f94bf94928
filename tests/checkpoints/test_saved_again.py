"""Weights that are saved again while they are evaluated: seen without reading them, unless their times changed."""

from __future__ import annotations

import os
import shutil
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.checkpoints import weights
from halos_eval.checkpoints.weights import inspect, scored_files
from halos_eval.errors import BadInput
from tests.doubles import lora, make_adapter, make_checkpoint, write_safetensors, write_tensors

FILES = ("config.json", "model.safetensors", "tokenizer.json", "vocab.json", "README.md", "optimizer.pt")
CLOCK = count(1)


def save(path, data):
    """Write a file in place. Its time is later than before, also on a disk whose clock is coarse."""
    path.write_bytes(data)
    os.utime(path, ns=(next(CLOCK), next(CLOCK)))


@given(
    edits=st.lists(
        st.tuples(
            st.sampled_from(FILES), st.sampled_from(["touch", "replace", "remove", "write"]), st.binary(max_size=2)
        )
    )
)
def test_a_change_is_noticed_if_and_only_if_the_digest_changes(edits, tmp_path_factory):
    folder = make_checkpoint(tmp_path_factory.mktemp("kto"), vocab_json="{}")
    found = inspect(str(folder))
    for name, edit, data in edits:
        path = folder / name
        if edit == "write":
            save(path, data)
        elif path.exists() and edit == "remove":
            path.unlink()
        elif path.exists() and edit == "touch":
            save(path, path.read_bytes())
        elif path.exists():
            shutil.copy(path, folder / "copy")
            (folder / "copy").replace(path)
    if weights._digest_scored(folder) == found.digest:
        found.check_unchanged()
    else:
        with pytest.raises(BadInput, match="was saved again while it was evaluated"):
            found.check_unchanged()


def test_unchanged_files_are_not_read(tmp_path, monkeypatch):
    found = inspect(str(make_checkpoint(tmp_path / "kto")))
    monkeypatch.setattr(weights, "digest_files", lambda *_: pytest.fail("files were read"))
    found.check_unchanged()


def test_stamps_are_of_scored_files_and_follow_links(tmp_path):
    target = write_safetensors(tmp_path / "blob")
    folder = make_checkpoint(tmp_path / "kto", README="")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(target)
    found = scored_files(folder)
    assert list(found) == ["config.json", "model.safetensors", "tokenizer.json"]
    status = target.stat()
    assert found["model.safetensors"] == (status.st_size, status.st_mtime_ns, status.st_ino)


@pytest.mark.parametrize("part", ["base", "adapter"])
def test_adapters_and_their_bases(tmp_path, part):
    base = make_checkpoint(tmp_path / "base")
    adapter = make_adapter(tmp_path / "lora", base)
    found = inspect(str(adapter))
    found.check_unchanged()
    if part == "base":
        write_safetensors(base / "model.safetensors", b"trained longer")
    else:
        write_tensors(adapter / "adapter_model.safetensors", lora(), b"other")
        save(adapter / "adapter_model.safetensors", (adapter / "adapter_model.safetensors").read_bytes())
    with pytest.raises(BadInput, match=f"{base if part == 'base' else adapter} was saved again"):
        found.check_unchanged()


def test_a_folder_that_is_removed_is_no_other_weights(tmp_path):
    folder = make_checkpoint(tmp_path / "kto")
    found = inspect(str(folder))
    shutil.rmtree(folder)
    found.check_unchanged()


def test_a_file_that_vanishes_while_it_is_looked_at_is_a_change(tmp_path, monkeypatch):
    found = inspect(str(make_checkpoint(tmp_path / "kto")))
    monkeypatch.setattr(weights, "scored_files", lambda _: (_ for _ in ()).throw(FileNotFoundError()))
    with pytest.raises(BadInput, match="was saved again"):
        found.check_unchanged()
