"""The folder of compiled code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from halos_eval.stages import compile_cache
from halos_eval.stages.compile_cache import FOLDERS, INDEX, key, remove_incomplete, use_compile_cache


@pytest.fixture(autouse=True)
def _variables(monkeypatch, tmp_path):
    """No variable of a cache is set, and none is left."""
    for name in (*FOLDERS, "HALOS_EVAL_COMPILE_CACHE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def hardware(monkeypatch, **facts):
    found = {"host": "a", "machine": "x86_64", "processor": "EPYC", "gpus": "H100, 81559 MiB, 580.1"} | facts
    monkeypatch.setattr(compile_cache.provenance, "hardware", lambda: found)


def used():
    return {name: os.environ[name] for name in FOLDERS}


def test_it_is_in_the_folder_of_the_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("HALOS_EVAL_COMPILE_CACHE", str(tmp_path / "compile"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/tmp/of-the-image")
    use_compile_cache()
    assert used() == {name: str(tmp_path / "compile" / key() / folder) for name, folder in FOLDERS.items()}
    assert all(Path(folder).is_dir() for folder in used().values())


def test_on_one_machine_it_is_in_the_users_cache(tmp_path):
    use_compile_cache()
    assert used()["VLLM_CACHE_ROOT"] == f"{tmp_path}/home/.cache/halos-eval/compile/{key()}/vllm"


def test_without_a_setting_an_images_folders_stay(monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/tmp/of-the-image")
    use_compile_cache()
    assert os.environ["VLLM_CACHE_ROOT"] == "/tmp/of-the-image"
    assert "TRITON_CACHE_DIR" not in os.environ


def test_a_folder_that_cannot_be_written_is_no_failure(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HALOS_EVAL_COMPILE_CACHE", str(tmp_path / "file"))
    use_compile_cache()
    assert "compiled code is not kept" in caplog.text


@pytest.mark.parametrize("facts", [{"gpus": "A100"}, {"processor": "Xeon"}, {"machine": "aarch64"}], ids=str)
def test_other_hardware_has_another_folder(monkeypatch, facts):
    hardware(monkeypatch)
    before = key()
    hardware(monkeypatch, **facts)
    assert key() != before


def test_another_host_has_the_same_folder(monkeypatch):
    hardware(monkeypatch)
    before = key()
    hardware(monkeypatch, host="b")
    assert key() == before


@pytest.mark.parametrize("package", ["vllm", "torch", "triton"])
def test_another_version_has_another_folder(monkeypatch, package):
    hardware(monkeypatch)
    monkeypatch.setattr(compile_cache, "version", lambda name: "1.0")
    before = key()
    monkeypatch.setattr(compile_cache, "version", lambda name: "2.0" if name == package else "1.0")
    assert key() != before


@pytest.mark.parametrize("text", ["{(None, 0, 'inductor'): {", "{1: call()}", ""])
def test_a_half_written_index_is_removed(text, tmp_path):
    whole, half = tmp_path / "a" / INDEX, tmp_path / "b" / INDEX
    for path, content in ((whole, "{(None, 0, 'inductor'): ('a', 'b')}"), (half, text)):
        path.parent.mkdir()
        path.write_text(content)
    remove_incomplete(tmp_path)
    assert (whole.exists(), half.exists()) == (True, False)
