"""NLTK's data: a package in the cache is complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from halos_eval.data import nltk
from halos_eval.errors import DataUnavailable


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    return tmp_path


def download(package, download_dir, quiet, raise_on_error):
    """What nltk.download does: the archive, then its content."""
    assert quiet
    assert raise_on_error
    unpacked = Path(download_dir) / "tokenizers" / package
    unpacked.mkdir(parents=True)
    unpacked.with_suffix(".zip").write_bytes(b"zip")
    (unpacked / "words.tab").write_text("a")
    return True


def refuse(*_, **__):
    raise ValueError("Error loading punkt_tab: <urlopen error refused>")


def test_the_archive_and_its_content(cache):
    assert nltk.fetch(download, "punkt_tab") == cache / "nltk_data" / "tokenizers" / "punkt_tab.zip"
    assert (cache / "nltk_data" / "tokenizers" / "punkt_tab" / "words.tab").read_text() == "a"
    assert sorted(path.name for path in (cache / "nltk_data").iterdir()) == ["punkt_tab.lock", "tokenizers"]
    assert nltk.fetch(refuse, "punkt_tab").is_file()  # not asked for again


def test_content_without_its_archive_was_left_by_a_kill(cache):
    half = cache / "nltk_data" / "tokenizers" / "punkt_tab"
    half.mkdir(parents=True)
    (half / "half.tab").write_text("")
    nltk.fetch(download, "punkt_tab")
    assert [path.name for path in half.iterdir()] == ["words.tab"]


def test_an_unavailable_package(cache):
    with pytest.raises(DataUnavailable, match=r"punkt_tab is unavailable .*refused.*Check the network"):
        nltk.fetch(refuse, "punkt_tab")
    with pytest.raises(DataUnavailable, match="NLTK has no package nothing"):
        nltk.fetch(lambda *_, **__: True, "nothing")
    assert [path.suffix for path in (cache / "nltk_data").iterdir()] == [".lock", ".lock"]
