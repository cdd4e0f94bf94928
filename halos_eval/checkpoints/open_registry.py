"""Which registry HALOS_EVAL_CHECKPOINTS means."""

from __future__ import annotations

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.checkpoints.listed import ListRegistry
from halos_eval.checkpoints.metadata import folder_url
from halos_eval.checkpoints.mlflow import SCHEMES, MlflowRegistry
from halos_eval.checkpoints.registry import Registry
from halos_eval.errors import BadInput


def open_registry(place: str, steps: bool = False) -> Registry:
    """The registry at ``place``: mlflow+http://HOST:PORT (or mlflow+https), a list NAME.yaml, or a folder.

    A list or a folder is a path or an s3:// URL; ``steps`` lists an experiment's other folders as well. Nothing is
    read yet. Raises BadInput.
    """
    if place.startswith(SCHEMES):
        return MlflowRegistry(place)
    try:
        url = folder_url(place)
    except BadInput as error:
        raise BadInput(
            "HALOS_EVAL_CHECKPOINTS names no place of checkpoints: give a folder (/PATH or s3://BUCKET/PREFIX), a list "
            "(NAME.yaml), or MLflow as mlflow+http://HOST:PORT"
        ) from error
    return ListRegistry(url) if url.endswith((".yaml", ".yml")) else FolderRegistry(url, steps)
