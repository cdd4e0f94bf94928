"""Connections to the judge's endpoint: one request, one reply.

OpenAI's client takes 0.6 s to import, and builds and validates objects for each answer: together a second of the
processor for 805 pairs. It is used for batches only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.untrusted import parse_json, whole_json

if TYPE_CHECKING:
    from aiohttp import ClientSession


class NoReply(Exception):
    """The endpoint did not reply; with ``timeout``, not in time."""

    def __init__(self, words: str, timeout: bool = False) -> None:
        super().__init__(words)
        self.timeout = timeout


class Reply(NamedTuple):
    """What an endpoint replied."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    def body(self) -> Any:
        """Return the JSON document. Raise ValueError if it is none."""
        return whole_json(parse_json(self.data))

    def error(self) -> tuple[str | None, str]:
        """Return the vendor's code of an error, and its message with the status."""
        try:
            body = self.body()
        except ValueError:
            body = None
        found = body.get("error", body) if isinstance(body, dict) else None
        words = f"Error code: {self.status}"
        if not isinstance(found, dict):
            return None, words
        code, message = found.get("code"), found.get("message")
        return None if code is None else str(code), f"{words} - {message}" if isinstance(message, str) else words


class Connection:
    """Connections to one endpoint, for as long as the context lasts."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        """Seconds to wait for a reply."""
        self._session: ClientSession | None = None
        self._options: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        """Open the session. The pace limits the connections, see `halos_eval.stages.judge.pace`."""
        import aiohttp
        import httpx2
        from aiohttp.helpers import get_env_proxy_for_url
        from yarl import URL

        # As OpenAI's client: certifi's authorities, or those of SSL_CERT_FILE; proxies of the environment. With
        # trust_env, aiohttp would read ~/.netrc for each request, and fail if it names the endpoint.
        secure = urlsplit(self.endpoint.base_url).scheme == "https"
        # Headers of the session would also be sent to a proxy, so each request gets them.
        self._options = {"headers": self._headers()}
        with suppress(LookupError):  # no proxy
            self._options["proxy"], user = get_env_proxy_for_url(URL(self.endpoint.base_url))
            if user:  # aiohttp renames the header
                self._options["proxy_headers"] = {"Authorization": user.encode()}
        connector = aiohttp.TCPConnector(limit=0, ssl=httpx2.create_ssl_context() if secure else True)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session."""
        if self._session:
            await self._session.close()

    async def post(self, body: dict[str, Any], timeout: float | None = None) -> Reply:
        """Request a chat completion. Raise NoReply."""
        import aiohttp

        if self._session is None:
            raise RuntimeError("the connection is not open")
        seconds, data = timeout or self.timeout, json.dumps(body).encode()
        url, patience = self._url(body["model"]), aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.post(url, data=data, timeout=patience, **self._options) as reply:
                return Reply(reply.status, reply.headers, await reply.read())
        except TimeoutError:
            raise NoReply(f"no answer within {seconds:g} s", timeout=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise NoReply(str(error) or type(error).__name__) from None

    def _url(self, model: str) -> str:
        """Return the address of chat completions. Azure has one for each deployment."""
        client, parts = self.endpoint.client, urlsplit(self.endpoint.base_url)
        path, query = parts.path.rstrip("/"), parts.query
        if client.azure_endpoint:
            path += f"/openai/deployments/{quote(client.azure_deployment or model, safe='')}"
            query = urlencode({"api-version": client.api_version})
        added = urlencode({name: value.get_secret_value() for name, value in self.endpoint.query.items()})
        return urlunsplit(parts._replace(path=f"{path}/chat/completions", query="&".join(filter(None, (query, added)))))

    def _headers(self) -> dict[str, str]:
        """Return the headers of every request. Those of the judge's file override the others."""
        endpoint, key = self.endpoint, self.endpoint.key
        found = {"content-type": "application/json", "accept": "application/json", "user-agent": "halos-eval"}
        if key and endpoint.client.azure_endpoint:
            found["api-key"] = key.get_secret_value()
        elif key and not urlsplit(endpoint.base_url).username:  # credentials in the address come before the key
            found["authorization"] = f"Bearer {key.get_secret_value()}"
        names = {"openai-organization": endpoint.client.organization, "openai-project": endpoint.client.project}
        found |= {name: value for name, value in names.items() if value}
        return found | {name.lower(): value.get_secret_value() for name, value in endpoint.headers.items()}
