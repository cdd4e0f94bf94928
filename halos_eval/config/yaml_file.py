"""Reading of YAML that people write, with the same error messages for every kind of file."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from halos_eval.errors import BadInput, describe
from halos_eval.untrusted import HALF

Model = TypeVar("Model", bound=BaseModel)


def parse_yaml(data: bytes, where: str) -> Any:
    """Return the document in ``data``, which is from ``where``. Raises BadInput.

    Tags of checkpoints are text, as they are written: of ``tags: {version: 1.10, sft: yes}`` they are "1.10" and "yes".
    """
    try:
        return yaml.load(data.decode("utf-8"), Loader=_TextTags)  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError, OverflowError) as error:
        # ValueError: invalid UTF-8, or a day such as 2026-02-30. PyYAML raises others for a value that its tag does not
        # fit, such as !!bool x.
        raise BadInput(f"{where} is not valid YAML: {error}") from error


class _TextTags(yaml.SafeLoader):
    """Reads the keys and values of a mapping ``tags`` as text, where YAML sees numbers, dates and yes or no."""

    TEXT = "tag:yaml.org,2002:str"
    TYPES = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "timestamp"))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping ``node``."""
        for position, (key, value) in enumerate(node.value):
            if key.value == "tags" and isinstance(value, yaml.MappingNode):
                self.flatten_mapping(value)
                tags = [(self._text(name), self._text(tag)) for name, tag in value.value]
                node.value[position] = (key, yaml.MappingNode(value.tag, tags, value.start_mark, value.end_mark))
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Return a scalar with whole characters. JSON, which is YAML too, has two escapes for one emoji."""
        found = super().construct_scalar(node)
        try:
            return found.encode("utf-16", "surrogatepass").decode("utf-16") if HALF.search(str(found)) else found
        except UnicodeDecodeError:
            words = "half a character, which no text can have. Replace it"
            raise yaml.constructor.ConstructorError(None, None, words, node.start_mark) from None

    def _text(self, node: yaml.Node) -> yaml.Node:
        if node.tag not in self.TYPES:
            return node
        return yaml.ScalarNode(self.TEXT, node.value, node.start_mark, node.end_mark)


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
