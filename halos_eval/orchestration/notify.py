"""Delivery of the message with Apprise (Slack, mail, webhooks), by an Airflow connection.

The connection's URLs hold secrets, and Apprise logs URLs that it cannot parse. So no library writes to Airflow's log
while the message is sent. Our own log lines and errors name a service by its kind and its number in the connection.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.apprise.hooks.apprise import AppriseHook
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException
from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType
from apprise.result import NotifyResult
from pydantic import SecretStr

from halos_eval.errors import BadInput
from halos_eval.reports.message import Message

logger = logging.getLogger(__name__)

CONNECTION = "halos_eval_message"
EXTRA = '{"config": [{"path": "URL OF APPRISE"}, ...]}'
HEARTBEAT_TIMEOUT = 30  # seconds
HEARTBEAT_WAITS = (0, 5, 25)  # seconds before each attempt
REMEDY = f"Set the connection {CONNECTION}: type apprise, extra {EXTRA}"
# Apprise retries a service by itself, so the other services do not receive the message twice.
ASSET = AppriseAsset(app_id="halos-eval", app_desc="halos-eval", default_service_retry=2, default_service_wait=20)


class NotDelivered(AirflowException):
    """No service accepted the message. Airflow retries, because services and networks recover."""


def send(message: Message) -> None:
    """Log the message, then send it to all services of the connection ``halos_eval_message``, if there is one.

    Raise NotDelivered if no service accepts it. Raise AirflowFailException if only some do: a retry would send it to
    those twice. Raise BadInput if the connection is invalid. Each error starts with the message's title, so that the
    outcome of the runs stays visible.
    """
    logger.info("%s\n\n%s", message.title, message.body)
    try:
        with _silence():
            results = _notify(_services(), message)
    except BadInput as error:
        raise BadInput(f"{message.title}. The message was not sent: {error}") from None
    if not results:
        logger.warning("the message is only in this log, because there is no connection. %s", REMEDY)
    failed = [f"{one.name} ({number}): {_reason(one)}" for number, one in enumerate(results, start=1) if not one]
    if failed:
        kind = NotDelivered if len(failed) == len(results) else AirflowFailException
        raise kind(f"{message.title}. Not delivered: {'; '.join(failed)}")


def beat(url: SecretStr | None) -> None:
    """Request ``url``, which tells a monitoring service that the message was sent. Do nothing without one.

    A failure is only logged: if the task failed, its retry would send the message again. The service then raises its
    alarm, which is right for a network that does not work. The URL is a secret and appears in no log.
    """
    if url is None:
        return
    for wait in HEARTBEAT_WAITS:
        time.sleep(wait)
        problem = _request(url)
        if problem is None:
            logger.info("sent the heartbeat")
            return
    logger.warning("no heartbeat (%s). Check HALOS_EVAL_HEARTBEAT_URL and the network", problem)


def _request(url: SecretStr) -> str | None:
    """Request ``url``. Return what is wrong, or None."""
    import httpx2

    try:
        with _silence():
            answer = httpx2.get(url.get_secret_value(), timeout=HEARTBEAT_TIMEOUT)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return type(error).__name__  # its text may contain the URL
    return None if answer.is_success else f"HTTP {answer.status_code}"


@contextmanager
def _silence() -> Iterator[None]:
    """Drop all log records. Apprise keeps its own with its results."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    handlers = list(logging.root.handlers)
    for handler in handlers:
        handler.addFilter(drop)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(drop)


def _services() -> Apprise:
    """Return the connection's services; none if there is no connection. Raise BadInput if it is invalid."""
    services, hook = Apprise(asset=ASSET), AppriseHook(CONNECTION)
    try:
        config = hook.get_config_from_conn(hook.get_connection(CONNECTION))
        urls = [entry["path"] for entry in (config if isinstance(config, list) else [config])]
    except AirflowNotFoundException:
        return services
    except (LookupError, TypeError, ValueError):
        urls = []
    if not urls:
        raise BadInput(f"the connection has no service. {REMEDY}")
    unknown = [str(number) for number, url in enumerate(urls, start=1) if not services.add(url)]
    if unknown:
        raise BadInput(f"entry {', '.join(unknown)} of the connection is not a URL of Apprise. {REMEDY}")
    return services


def _notify(services: Apprise, message: Message) -> tuple[NotifyResult, ...]:
    """Send the message and return each service's result. The hook's own ``notify`` does not return it."""
    kind = NotifyType.FAILURE if message.failed else NotifyType.SUCCESS
    result = services.notify(message.body, message.title, kind, body_format=NotifyFormat.MARKDOWN)
    return tuple(result.results)


def _reason(result: NotifyResult) -> str:
    """Return why a service failed. Only its HTTP status is used: other details from Apprise may hold a secret."""
    codes = [found[1] for entry in result.logs() if (found := re.search(r"error=(\d{3})\b", entry.message))]
    return f"HTTP {codes[-1]}" if codes else "unreachable, or message rejected: test its URL with the command apprise"
