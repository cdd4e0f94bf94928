"""Provenance: a record's facts about the process that wrote it."""

from __future__ import annotations

import os
import subprocess

import pytest

from halos_eval.stages import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with this package's layout."""
    monkeypatch.delenv("HALOS_EVAL_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # no hooks, no signing
    module = tmp_path / "halos_eval" / "stages" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(module))
    return module


def test_the_commit_is_asked_from_git(checkout):
    assert len(provenance.commit()) == 40
    (checkout.parent / "new.py").write_text("")
    assert len(provenance.commit()) == 40  # not tracked: none of the package's code
    checkout.write_text("changed")
    assert provenance.commit().endswith("+dirty")


def test_the_commit_of_an_image_is_stamped(checkout, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_COMMIT", "abc")
    assert provenance.commit() == "abc"


def test_no_commit_without_a_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("HALOS_EVAL_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "halos_eval" / "stages" / "provenance.py"))
    assert provenance.commit() is None


def test_packages():
    found = provenance.packages()
    assert {"halos-eval", "pandas"} <= found.keys() <= provenance.PACKAGES
    assert list(found) == sorted(found)


def test_hardware():
    found = provenance.hardware()
    assert {"host", "machine", "cores", "gpus"} <= found.keys()
    assert int(found["cores"]) >= 1
    assert all(isinstance(value, str) for value in found.values())
