"""How a judge's endpoint is reached: alpaca_eval's ``client_kwargs``, with references instead of secrets.

``${NAME}`` in an address, a header, a query or the key stands for the environment variable NAME of the judge's stage.
None of this determines a preference, so it is no part of the fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, model_validator

from halos_eval.config.settings import FROZEN

REFERENCE = re.compile(r"\$\{([^}]*)\}")
JUDGES_VARIABLES = ("OPENAI_", "AZURE_OPENAI_", "JUDGE_")
"""Beginnings of the variables that a judge may refer to, so that no file sends the store's keys to an endpoint."""
SECRET_NAME = re.compile(
    r"authori[sz]ation|cookie|secret|token|password|signature|^sig$|(^|[-_])(api)?key", re.IGNORECASE
)


class Client(BaseModel):
    """The address, headers and patience of a client. The keys are those of the OpenAI client's constructor."""

    model_config = FROZEN

    base_url: str | None = None
    """Root of the API (default: OPENAI_BASE_URL, or the vendor's)."""
    azure_endpoint: str | None = None
    """Address of an Azure resource, whose API has a path for each deployment."""
    azure_deployment: str | None = None
    """Name of the deployment on Azure (default: the model's name)."""
    api_version: str | None = None
    """Version of Azure's API."""
    api_key: str | None = None
    """Reference to the key (default: OPENAI_API_KEY, or AZURE_OPENAI_API_KEY with an azure_endpoint)."""
    organization: str | None = None
    """The vendor's header for the organization."""
    project: str | None = None
    """The vendor's header for the project."""
    default_headers: dict[str, str] = {}
    """Headers of every request."""
    default_query: dict[str, str] = {}
    """Query parameters of every request."""
    timeout: float | None = Field(None, gt=0)
    """Seconds to wait for an answer (default: the option --timeout)."""
    max_retries: int | None = Field(None, ge=0)
    """How often a request is repeated (default: 8)."""
    parallel: int | None = Field(None, ge=1)
    """Most requests at the same time, alpaca_eval's ``num_procs`` (default: the option --concurrency)."""

    @model_validator(mode="after")
    def _whole(self) -> Client:
        if bool(self.azure_endpoint) != bool(self.api_version):
            raise ValueError("azure_endpoint and api_version belong together; give both, or base_url alone")
        if self.azure_endpoint and self.base_url:
            raise ValueError("azure_endpoint and base_url exclude each other; give one of them")
        return self

    @model_validator(mode="after")
    def _without_secrets(self) -> Client:
        if self.api_key is not None and not REFERENCE.fullmatch(self.api_key):
            raise ValueError("api_key holds a key; expected ${NAME}. Put the key into the environment variable NAME")
        for url in filter(None, (self.base_url, self.azure_endpoint)):
            if urlsplit(url).password and not REFERENCE.search(url):
                raise ValueError("the address holds a password; expected https://${NAME}@HOST")
        for name, value in {**self.default_headers, **self.default_query}.items():
            if SECRET_NAME.search(name) and not REFERENCE.search(value):
                raise ValueError(
                    f"{name} holds a secret; expected ${{NAME}}. Put it into the environment variable NAME"
                )
        for name in self.variables():
            if not name.startswith(JUDGES_VARIABLES):
                beginnings = ", ".join(JUDGES_VARIABLES)
                raise ValueError(
                    f"${{{name}}} is not a variable of judges; expected a name that begins with {beginnings}"
                )
        return self

    def variables(self) -> list[str]:
        """Return the names of the environment variables that are referred to."""
        return [name for text in self._texts() for name in REFERENCE.findall(text)]

    def _texts(self) -> Iterator[str]:
        values = (self.base_url, self.azure_endpoint, self.api_key)
        yield from (text for text in values if text)
        yield from (*self.default_headers.values(), *self.default_query.values())


def split_options(options: dict[str, Any], client_options: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a request, and those of the client, from alpaca_eval's ``completions_kwargs``.

    ``client_options`` are the options of alpaca_eval's client that are not sent. Raise ValueError for those that this
    project's client cannot honour.
    """
    sent = {key: value for key, value in options.items() if key not in {*client_options, "client_kwargs"}}
    for key in ("max_tokens", "top_p", "temperature"):
        if key in sent and sent[key] is None:  # alpaca_eval does not send these either
            del sent[key]
    client = options.get("client_kwargs") or {}
    if not isinstance(client, dict):
        raise ValueError("client_kwargs is no mapping; expected base_url: ..., default_headers: {...}")
    for key, where in {"num_procs": "parallel", "n_retries": "max_retries"}.items():
        if options.get(key) is not None:
            client = {where: options[key], **client}
    for key in options.keys() & set(client_options):
        if problem := _problem(key, options[key]):
            raise ValueError(f"{key} of alpaca_eval's own client is not supported{problem}")
    for key in ("api_key", "extra_headers", "extra_query"):
        if key in sent:
            raise ValueError(
                f"{key} is not an option of a request here. Use client_kwargs: api_key, default_headers, default_query"
            )
    return sent, client


HONOURED = {"client_kwargs", "num_procs", "n_retries", "price_per_token", "is_strip", "batch_size"}
"""``is_strip`` and ``batch_size`` change nothing for chat: alpaca_eval strips each message and sends one at a time."""
REMEDY = {
    "tokens_to_favor": ". Give logit_bias with the numbers of the tokens",
    "tokens_to_avoid": ". Give logit_bias with the numbers of the tokens",
    "is_skip_multi_tokens_to_avoid": ". Give logit_bias with the numbers of the tokens",
    "client_config_path": ". Write the client into client_kwargs, with ${NAME} for secrets",
    "openai_api_keys": ". Set the environment variable OPENAI_API_KEY, or client_kwargs: {api_key: ${NAME}}",
    "openai_organization_ids": ". Use client_kwargs: {organization: ...}",
    "openai_api_base": ". Use client_kwargs: {base_url: ...}",
    "sleep_time": ". Remove it: the pause between two tries grows by itself",
}


def _problem(key: str, value: Any) -> str | None:
    if key in HONOURED:
        return None
    if key in {"requires_chatml", "is_chat"}:
        return (
            None if value else f" with the value {value}, as plain completions are not supported. Use a chat template"
        )
    return REMEDY.get(key, ". Remove it")
