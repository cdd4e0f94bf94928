"""Reading of YAML that people write, with the same error messages for every kind of file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from halos_eval.errors import BadInput, describe

Model = TypeVar("Model", bound=BaseModel)


def parse_yaml(data: bytes, where: str) -> Any:
    """Return the document in ``data``, which is from ``where``. Raises BadInput."""
    try:
        return yaml.safe_load(data.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: invalid UTF-8, or a day such as 2026-02-30
        raise BadInput(f"{where} is not valid YAML: {error}") from error


def validated(document: Any, model: type[Model], where: str, **options: Any) -> Model:
    """Return ``document``, which is from ``where``, as a ``model``; pydantic gets ``options``.

    Raises BadInput with all errors of the document.
    """
    try:
        return model.model_validate(document, **options)
    except ValidationError as error:
        raise BadInput(f"{where}: {describe(error)}") from error


def read_settings_file(kind: str, path: str, model: type[Model], **options: Any) -> Model:
    """Return the file ``path``, which HALOS_EVAL_KIND names, as a ``model``; pydantic gets ``options``.

    Raises BadInput with all errors of the file.
    """
    where = f"{kind} file {path} (HALOS_EVAL_{kind.upper()})"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{where} cannot be read: {error}. Correct the path or its permissions") from error
    return validated(parse_yaml(data, where), model, where, **options)
