"""The YAML files that settings name: read in one way, so that what is wrong is told in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from halos_eval.errors import BadInput, describe

Model = TypeVar("Model", bound=BaseModel)


def read_settings_file(kind: str, path: str, model: type[Model], **options: Any) -> Model:
    """The file at ``path``, which HALOS_EVAL_KIND names, as ``model``; ``options`` are pydantic's for validating.

    Raises BadInput with everything that is wrong in the file at once.
    """
    try:
        return model.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")), **options)
    except ValidationError as error:
        raise BadInput(f"{kind} {path}: {describe(error)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{kind} {path} cannot be read: {error}. HALOS_EVAL_{kind.upper()} names it") from error
