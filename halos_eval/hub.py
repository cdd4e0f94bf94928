"""What the hub's client raises when something cannot be had: one place, as it has changed its HTTP library before."""

from __future__ import annotations


def hub_errors() -> tuple[type[Exception], ...]:
    """Exceptions that mean "the hub does not give it": unknown, gated, offline, out of reach."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
