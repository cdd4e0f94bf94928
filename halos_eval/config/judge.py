"""Judges: alpaca_eval's annotator configuration for an OpenAI-compatible endpoint, plus its price list.

A file has one entry, NAME: {...}, with alpaca_eval's own keys, so that the files HALOs users have work as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, describe
from halos_eval.shipped import shipped

CLASSIFICATION_PROMPT = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"


class Price(BaseModel):
    """The vendor's price list."""

    model_config = FROZEN

    input: float = Field(ge=0)
    """US dollars for a million tokens read."""
    output: float = Field(ge=0)
    """US dollars for a million tokens made."""


class Judge(BaseModel):
    """One judge. Keys as in alpaca_eval's configs.yaml."""

    model_config = FROZEN

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The entry's key."""
    prompt_template: str = CLASSIFICATION_PROMPT
    """Template file: beside this file, absolute, or one that alpaca_eval ships."""
    fn_completions: Literal["openai_completions"] = "openai_completions"
    """Only OpenAI-compatible endpoints are spoken to."""
    completions_kwargs: dict[str, Any]
    """``model_name`` and the options of each request: max_tokens, temperature, logprobs, extra_body, ..."""
    fn_completion_parser: str = "logprob_parser"
    """alpaca_eval's parser of the answer."""
    completion_parser_kwargs: dict[str, Any] = {}
    """Options of the parser."""
    completion_key: Literal["completions", "completions_all"] = "completions"
    """What the parser gets: the text, or everything with log-probabilities."""
    batch_size: Literal[1] = 1
    """Pairs in one request."""
    price_per_million_tokens: Price | None = None
    """Price list; None: the price is not known and stays empty."""
    template_text: str | None = None
    """The template's text where it is a file of the user's; None for one that alpaca_eval ships."""

    @property
    def model(self) -> str:
        """The model's name at the endpoint."""
        return str(self.completions_kwargs["model_name"])

    def inputs(self) -> dict[str, str]:
        """What of the judge determines a preference; the price does not."""
        config = self.model_dump_json(exclude={"price_per_million_tokens", "name"})
        return {"annotator": digest_bytes(config.encode())}

    def alpaca_config(self) -> dict[str, Any]:
        """Return the entry as alpaca_eval reads it, without the function that makes requests: that is ours."""
        return self.model_dump(exclude={"name", "fn_completions", "price_per_million_tokens", "template_text"})


def shipped_names() -> list[str]:
    """The judges that ship with the package."""
    return sorted(path.stem for path in shipped("judges").glob("*.yaml"))


def check_shipped(name: str) -> None:
    """Raise BadInput unless a judge of this name ships: a form may not name a file."""
    if name not in shipped_names():
        shipped_ones = ", ".join(shipped_names())
        raise BadInput(f"judge {name}: there is none. Shipped: {shipped_ones}; a file can be named in a suite only")


def load_judge(name: str) -> Judge:
    """A judge by its shipped name or its file. Raises BadInput."""
    names = shipped_names()
    path = shipped("judges") / f"{name}.yaml" if name in names else Path(name)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"judge {name}: there is none. Shipped: {', '.join(names)}; or give a YAML file") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"judge {name} is not YAML: {error}") from error
    if not isinstance(document, dict) or len(document) != 1:
        raise BadInput(f"judge {name}: a file has one entry, NAME: {{prompt_template: ..., completions_kwargs: ...}}")
    (key, entry), *_ = document.items()
    try:
        judge = Judge.model_validate({**(entry if isinstance(entry, dict) else {}), "name": str(key)})
    except ValidationError as error:
        raise BadInput(f"judge {name}: {describe(error)}") from error
    if "model_name" not in judge.completions_kwargs:
        raise BadInput(f"judge {name}: completions_kwargs has no model_name")
    return judge.model_copy(update={"template_text": _template_text(judge.prompt_template, path.parent)})


def _template_text(template: str, folder: Path) -> str | None:
    path = folder / template
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if Path(template).is_absolute():
        raise BadInput(
            f"prompt_template {template}: there is no such file; {CLASSIFICATION_PROMPT} ships with alpaca_eval"
        )
    return None
