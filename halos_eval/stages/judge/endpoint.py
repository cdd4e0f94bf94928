"""The judge's endpoint: its address, its key and its headers, with the environment's values for references."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, SecretStr

from halos_eval.config.judge_client import REFERENCE, Client
from halos_eval.config.settings import FROZEN
from halos_eval.errors import JudgeRefused

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY = "OPENAI_API_KEY"
AZURE_KEY = "AZURE_OPENAI_API_KEY"


class Endpoint(BaseModel):
    """The judge's URL and credentials. They come only from the environment, and are never logged."""

    model_config = FROZEN

    base_url: str
    """Root of the API; the resource's address on Azure."""
    key: SecretStr | None
    """Bearer token, or Azure's key; None if the headers hold the credentials."""
    client: Client = Client()
    """What the judge's file says about the client."""
    headers: dict[str, SecretStr] = {}
    """Headers of every request."""
    query: dict[str, SecretStr] = {}
    """Query parameters of every request."""
    hidden: tuple[SecretStr, ...] = ()
    """Values of the variables that the judge's file refers to."""
    served: str | None = None
    """What a server of this installation serves: it stands for its URL, whose port is another one at each start."""

    @property
    def place(self) -> str:
        """The URL for messages, records and kept answers, without a user name and password that it may contain."""
        if self.served:
            return self.served
        parts = urlsplit(self.base_url)
        return self.hide(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))

    @classmethod
    def from_environment(cls, client: Client = Client()) -> Endpoint:  # noqa: B008 (frozen)
        """Return the endpoint of the judge's file, or of OPENAI_BASE_URL and OPENAI_API_KEY.

        Raise JudgeRefused without a key, or without a variable that the file refers to.
        """
        values = {name: _variable(name) for name in client.variables()}

        def filled(text: str) -> str:
            return REFERENCE.sub(lambda found: values[found[1]], text)

        address = client.azure_endpoint or client.base_url or os.environ.get("OPENAI_BASE_URL")
        if client.api_key:
            key: str | None = filled(client.api_key)
        elif any(map(REFERENCE.search, (*client.default_headers.values(), *client.default_query.values()))):
            key = os.environ.get(KEY)
        else:
            key = _variable(AZURE_KEY if client.azure_endpoint else KEY)
        return cls(
            base_url=filled(address or "https://api.openai.com/v1"),
            key=SecretStr(key) if key else None,
            client=client,
            headers={name: SecretStr(filled(value)) for name, value in client.default_headers.items()},
            query={name: SecretStr(filled(value)) for name, value in client.default_query.items()},
            hidden=tuple(map(SecretStr, values.values())),
        )

    def account(self, timeout: float) -> AsyncOpenAI:
        """Return OpenAI's client for batches, which waits ``timeout`` seconds for a reply, and repeats nothing."""
        from openai import AsyncOpenAI, DefaultAioHttpClient, Omit

        headers: dict[str, Any] = {name: value.get_secret_value() for name, value in self.headers.items()}
        if not self.key and "authorization" not in map(str.lower, headers):
            headers["Authorization"] = Omit()
        return AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.key.get_secret_value() if self.key else "none",
            organization=self.client.organization,
            project=self.client.project,
            default_headers=headers,
            default_query={name: value.get_secret_value() for name, value in self.query.items()},
            timeout=timeout,
            max_retries=0,
            http_client=DefaultAioHttpClient(),
        )

    def hide(self, text: str) -> str:
        """Return ``text`` without the credentials, because some endpoints repeat the key that they refuse."""
        for secret in (self.key, *self.hidden):
            if secret and secret.get_secret_value():
                text = text.replace(secret.get_secret_value(), "***")
        return text


def _variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise JudgeRefused(f"{name} is not set; the judge's key is read only from this variable. Set it")
    return value
