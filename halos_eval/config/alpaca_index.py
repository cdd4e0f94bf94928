"""Facts about the judges that alpaca_eval ships, for environments without alpaca_eval.

`make index` writes shipped/alpaca_eval.json from the installed package (halos_eval.stages.judge.installed). The file
has parameters, names and digests. It has no text of a template, and a digest stands for each description of a tool.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_bytes
from halos_eval.shipped import shipped

PLACEHOLDERS = ("instruction", "output_1", "output_2")
"""What alpaca_eval fills into a template."""


class Template(BaseModel):
    """Facts about a prompt template."""

    model_config = FROZEN

    sha256: str
    """Digest of the file."""
    placeholders: tuple[str, ...]
    """Names in braces, in order, as alpaca_eval finds them."""
    chat: bool
    """Whether it is ChatML. Other templates are for the endpoint of plain completions."""

    @classmethod
    def of(cls, data: bytes) -> Template:
        """Return the facts about a template's content. Raise UnicodeDecodeError."""
        text = data.decode("utf-8")
        bare = text.strip()
        return cls(
            sha256=digest_bytes(data),
            placeholders=tuple(re.findall(r"{([^ \s]+?)}", text)),  # alpaca_eval.utils.make_prompts
            chat=bare.startswith("<|im_start|>") and bare.endswith("<|im_end|>"),
        )

    def problem(self) -> str | None:
        """Return why no judge can use the template, with the remedy; None if one can."""
        if not self.chat:
            return (
                "is not ChatML, and only chat endpoints are supported; expected <|im_start|>ROLE ... <|im_end|>. "
                "Write a judge file with such a template"
            )
        if sorted(self.placeholders) != sorted(PLACEHOLDERS):
            found = ", ".join(self.placeholders) or "none"
            return f"has the placeholders {found}; expected {', '.join(PLACEHOLDERS)}, each once. Correct the template"
        return None


class Index(BaseModel):
    """What alpaca_eval ships."""

    model_config = FROZEN

    version: str
    """Version of alpaca_eval."""
    judges: dict[str, dict[str, dict[str, Any]]]
    """Name of a judge -> its entries, without descriptions. A pool has several entries."""
    templates: dict[str, Template]
    """Path below evaluators_configs -> facts."""
    parsers: dict[str, dict[str, bool]]
    """Parser of answers -> its parameters, and whether each is required."""
    processors: dict[str, dict[str, bool]]
    """Processor -> its parameters, and whether each is required."""
    client_options: tuple[str, ...]
    """Options of alpaca_eval's own client, which are not part of a request."""


@cache
def index() -> Index:
    """Return the index of the pinned alpaca_eval."""
    return Index.model_validate(json.loads((shipped("alpaca_eval.json")).read_bytes()))


def without_descriptions(document: Any) -> Any:
    """Return a judge's entry with a digest for each description, and with keys as JSON has them."""
    if isinstance(document, dict):
        return {
            str(key): f"sha256:{digest_bytes(value.encode())}"
            if key == "description" and isinstance(value, str)
            else without_descriptions(value)
            for key, value in document.items()
        }
    return [without_descriptions(one) for one in document] if isinstance(document, list) else document
