"""The choice of the registry from HALOS_EVAL_CHECKPOINTS."""

from __future__ import annotations

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.checkpoints.listed import ListRegistry
from halos_eval.checkpoints.metadata import folder_url
from halos_eval.checkpoints.mlflow import SCHEMES, MlflowRegistry
from halos_eval.checkpoints.registry import Registry
from halos_eval.errors import BadInput


def open_registry(location: str, steps: bool = False) -> Registry:
    """Return the registry at ``location``: mlflow+http://HOST:PORT (or mlflow+https), a list NAME.yaml, or a folder.

    A list or a folder is a path or an s3:// URL. With ``steps``, an experiment's other folders are listed too. Nothing
    is read yet. Raises BadInput.
    """
    if location.startswith(SCHEMES):
        return MlflowRegistry(location)
    try:
        url = folder_url(location)
    except BadInput as error:
        # The value is not in the message, because it may contain a password.
        raise BadInput(
            "HALOS_EVAL_CHECKPOINTS is not a registry; expected a folder (/PATH or s3://BUCKET/PREFIX), a list "
            "(NAME.yaml) or MLflow (mlflow+http://HOST:PORT)"
        ) from error
    return ListRegistry(url) if url.endswith((".yaml", ".yml")) else FolderRegistry(url, steps)
