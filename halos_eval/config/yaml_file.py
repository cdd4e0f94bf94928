"""Reading of the YAML files that settings name, with the same error messages for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from halos_eval.errors import BadInput, describe

Model = TypeVar("Model", bound=BaseModel)


def read_settings_file(kind: str, path: str, model: type[Model], **options: Any) -> Model:
    """Return the file ``path``, which HALOS_EVAL_KIND names, as a ``model``. pydantic gets ``options``.

    Raises BadInput with all errors of the file.
    """
    try:
        return model.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")), **options)
    except ValidationError as error:
        raise BadInput(f"{kind} file {path}: {describe(error)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{kind} file {path} cannot be read ({error}). Check HALOS_EVAL_{kind.upper()}") from error
