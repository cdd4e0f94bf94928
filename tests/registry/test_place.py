"""Which registry a setting means."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from halos_eval.errors import BadInput
from halos_eval.registry.base import Metadata
from halos_eval.registry.folders import FolderRegistry
from halos_eval.registry.listed import ListRegistry
from halos_eval.registry.mlflow import MlflowRegistry
from halos_eval.registry.place import open_registry
from halos_eval.settings import Settings
from tests.doubles import make_checkpoint


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/data/checkpoints", FolderRegistry),
        ("file:///data/checkpoints", FolderRegistry),
        ("s3://bucket/checkpoints", FolderRegistry),
        ("/data/checkpoints.yaml", ListRegistry),
        ("file:///data/checkpoints.yml", ListRegistry),
        ("s3://bucket/checkpoints.yaml", ListRegistry),
        ("mlflow+http://127.0.0.1:5000", MlflowRegistry),
        ("mlflow+https://mlflow.example.org/prefix", MlflowRegistry),
    ],
)
def test_the_place_tells_the_kind(place, kind, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", place)
    assert type(open_registry(Settings().checkpoints)) is kind


def test_steps_are_a_setting(monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", "checkpoints")
    assert open_registry(Settings().checkpoints, Settings().steps).steps is False
    monkeypatch.setenv("HALOS_EVAL_STEPS", "true")
    assert open_registry(Settings().checkpoints, Settings().steps).steps is True


@pytest.mark.parametrize("place", ["http://127.0.0.1:5000", "gs://bucket/x", "mlflow://host", "http://a:secret@b/"])
def test_what_is_no_place(place):
    with pytest.raises(BadInput, match=r"give a folder .*, a list \(NAME\.yaml\), or MLflow as mlflow\+http") as caught:
        open_registry(place)
    assert "secret" not in str(caught.value)


def test_mlflow_without_a_host():
    with pytest.raises(BadInput, match=r"write mlflow\+http://HOST:PORT"):
        open_registry("mlflow+http://")


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_PASSWORD") as caught:
        open_registry("mlflow+https://user:secret-word@host:5000")
    assert "secret-word" not in str(caught.value)


def blocks_of_the_readme():
    """The indented blocks of the section on checkpoints: halos_eval.yaml, then a list."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Where checkpoints come from")[2].partition("\n## ")[0]
    return [dedent(block) for block in re.findall(r"\n\n((?:    .*\n)+)", section)]


def test_the_examples_of_the_readme(tmp_path):
    metadata, listed = blocks_of_the_readme()
    make_checkpoint(tmp_path / "llama3-8b-kto" / "FINAL", halos_eval_yaml=metadata)
    (tmp_path / "list.yaml").write_text(listed)
    kto, zephyr = (open_registry(f"{tmp_path}/list.yaml").get(name) for name in ("llama3-8b-kto", "zephyr-7b-beta"))
    assert kto.metadata.model_fields_set == set(Metadata.model_fields)
    assert (zephyr.revision, f"{zephyr.registered:%Y-%m-%d}") == ("main", "2026-11-01")
