"""The choice of the registry from a setting."""

from __future__ import annotations

import pytest

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.checkpoints.listed import ListRegistry
from halos_eval.checkpoints.mlflow import MlflowRegistry
from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.config.settings import Settings
from halos_eval.errors import BadInput


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
def test_the_location_selects_the_registry(place, kind, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", place)
    assert type(open_registry(Settings().checkpoints)) is kind


def test_steps_are_a_setting(monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", "checkpoints")
    assert open_registry(Settings().checkpoints, Settings().steps).steps is False
    monkeypatch.setenv("HALOS_EVAL_STEPS", "true")
    assert open_registry(Settings().checkpoints, Settings().steps).steps is True


@pytest.mark.parametrize("place", ["http://127.0.0.1:5000", "gs://bucket/x", "mlflow://host", "http://a:secret@b/"])
def test_an_invalid_location(place):
    with pytest.raises(
        BadInput, match=r"expected a folder .*, a list \(NAME\.yaml\) or MLflow \(mlflow\+http"
    ) as caught:
        open_registry(place)
    assert "secret" not in str(caught.value)


def test_mlflow_without_a_host():
    with pytest.raises(BadInput, match=r"expected mlflow\+http://HOST:PORT"):
        open_registry("mlflow+http://")


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_PASSWORD") as caught:
        open_registry("mlflow+https://user:secret-word@host:5000")
    assert "secret-word" not in str(caught.value)
