"""Judges: alpaca_eval's configuration of a judge with an OpenAI-compatible endpoint, plus a price list.

A file has one entry, NAME: {...}, with alpaca_eval's keys. The existing files of HALOs users work unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from halos_eval.config.settings import FROZEN
from halos_eval.config.yaml_file import parse_yaml, validated
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput
from halos_eval.shipped import shipped

CLASSIFICATION_PROMPT = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"


class Price(BaseModel):
    """The vendor's price list."""

    model_config = FROZEN

    input: float = Field(ge=0)
    """US dollars per million input tokens."""
    output: float = Field(ge=0)
    """US dollars per million output tokens."""


class Judge(BaseModel):
    """One judge. The keys are those of alpaca_eval's configs.yaml."""

    model_config = FROZEN

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Key of the entry."""
    prompt_template: str = CLASSIFICATION_PROMPT
    """Template file: relative to this file, absolute, or shipped with alpaca_eval."""
    fn_completions: Literal["openai_completions"] = "openai_completions"
    """Only OpenAI-compatible endpoints are supported."""
    completions_kwargs: dict[str, Any]
    """``model_name`` and the options of each request: max_tokens, temperature, logprobs, extra_body, ..."""
    fn_completion_parser: str = "logprob_parser"
    """alpaca_eval's parser of the answer."""
    completion_parser_kwargs: dict[str, Any] = {}
    """Options of the parser."""
    completion_key: Literal["completions", "completions_all"] = "completions"
    """Input of the parser: the text, or the whole completion with log-probabilities."""
    batch_size: Literal[1] = 1
    """Pairs in one request."""
    price_per_million_tokens: Price | None = None
    """Price list; None if the price is unknown, so that the cost stays empty."""
    template_text: str | None = None
    """Text of the user's own template; None for one that alpaca_eval ships."""

    @property
    def model(self) -> str:
        """Name of the model at the endpoint."""
        return str(self.completions_kwargs["model_name"])

    def inputs(self) -> dict[str, str]:
        """Return the digest of everything that determines a preference; the price does not."""
        config = self.model_dump_json(exclude={"price_per_million_tokens", "name"})
        return {"annotator": digest_bytes(config.encode())}

    def alpaca_config(self) -> dict[str, Any]:
        """Return the entry for alpaca_eval, without the function that sends requests: this project has its own."""
        return self.model_dump(exclude={"name", "fn_completions", "price_per_million_tokens", "template_text"})


def shipped_names() -> list[str]:
    """Return the names of the judges that ship with the package."""
    return sorted(path.stem for path in shipped("judges").glob("*.yaml"))


def check_shipped(name: str) -> None:
    """Raise BadInput unless a judge of this name ships. Airflow's form must not name a file."""
    if name not in shipped_names():
        available = ", ".join(shipped_names())
        raise BadInput(f"unknown judge {name!r}; available: {available}. Name a judge's file in a suite instead")


def load_judge(name: str) -> Judge:
    """Return a judge by its shipped name or its file. Raises BadInput."""
    names = shipped_names()
    path = shipped("judges") / f"{name}.yaml" if name in names else Path(name)
    where = f"judge {name}"
    try:
        data = path.read_bytes()
    except OSError as error:
        available = ", ".join(names)
        raise BadInput(f"unknown judge {name!r}; available: {available}. Name one of these or a YAML file") from error
    document = parse_yaml(data, where)
    if not isinstance(document, dict) or len(document) != 1:
        raise BadInput(f"{where}: expected one entry, NAME: {{prompt_template: ..., completions_kwargs: ...}}")
    (key, entry), *_ = document.items()
    judge = validated({**(entry if isinstance(entry, dict) else {}), "name": str(key)}, Judge, where)
    if "model_name" not in judge.completions_kwargs:
        raise BadInput(f"{where}: completions_kwargs has no model_name. Add the model's name at the endpoint")
    return judge.model_copy(update={"template_text": _template_text(judge.prompt_template, path.parent)})


def _template_text(template: str, folder: Path) -> str | None:
    path = folder / template
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"prompt_template {path} cannot be read: {error}. Save it as UTF-8 text") from error
    if Path(template).is_absolute():
        raise BadInput(
            f"prompt_template {template} does not exist; expected a file, or {CLASSIFICATION_PROMPT} of alpaca_eval"
        )
    return None
