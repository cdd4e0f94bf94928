"""The way of a message to people: Slack, mail, webhooks and all else that Apprise knows, by an Airflow connection.

The connection's URLs hold secrets, and Apprise logs what it cannot read. So nothing that is logged meanwhile, by
whatever library reaches a service, gets into Airflow's log; our own words name a service by its kind and its place in
the connection.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.apprise.hooks.apprise import AppriseHook
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException
from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType
from apprise.result import NotifyResult

from halos_eval.errors import BadInput
from halos_eval.reports.message import Message

logger = logging.getLogger(__name__)

CONNECTION = "halos_eval_message"
REMEDY = (
    f"Connection {CONNECTION} has to be of the type apprise, and its extra "
    '{"config": [{"path": "URL OF APPRISE"}, ...]}'
)
# A service that is down for a moment is tried again by itself: the others are not told twice.
ASSET = AppriseAsset(app_id="halos-eval", app_desc="halos-eval", default_service_retry=2, default_service_wait=20)


class NotDelivered(AirflowException):
    """Nobody was told. Tried again: services and networks come back."""


def send(message: Message) -> None:
    """Log the message, then send it to all services of the connection ``halos_eval_message``, if there is one.

    Raises NotDelivered where no service took it; AirflowFailException, which is not tried again, where only some did
    (they would be told twice); BadInput where the connection cannot be used. Each repeats the title: that people were
    not told must not hide what there was to tell.
    """
    logger.info("%s\n\n%s", message.title, message.body)
    try:
        with _silence():
            results = _notify(_services(), message)
    except BadInput as error:
        raise BadInput(f"{message.title}. Nobody was told: {error}") from None
    if not results:
        logger.warning("nobody is told: for that, make an Airflow connection. %s", REMEDY)
    failed = [f"{one.name} ({place}): {_reason(one)}" for place, one in enumerate(results, start=1) if not one]
    if failed:
        kind = NotDelivered if len(failed) == len(results) else AirflowFailException
        raise kind(f"{message.title}. Not told: {'; '.join(failed)}")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep out of the log what libraries log; Apprise itself keeps it with its results."""

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
    """The connection's services; none where there is no connection. Raises BadInput."""
    services, hook = Apprise(asset=ASSET), AppriseHook(CONNECTION)
    try:
        config = hook.get_config_from_conn(hook.get_connection(CONNECTION))
        urls = [entry["path"] for entry in (config if isinstance(config, list) else [config])]
    except AirflowNotFoundException:
        return services
    except (LookupError, TypeError, ValueError):
        urls = []
    if not urls:
        raise BadInput(f"the connection names no service. {REMEDY}")
    unknown = [str(place) for place, url in enumerate(urls, start=1) if not services.add(url)]
    if unknown:
        raise BadInput(f"entry {', '.join(unknown)} of the connection is no URL of Apprise. {REMEDY}")
    return services


def _notify(services: Apprise, message: Message) -> tuple[NotifyResult, ...]:
    """How it went with each service. Not by the hook's own ``notify``: that does not tell."""
    kind = NotifyType.FAILURE if message.failed else NotifyType.SUCCESS
    result = services.notify(message.body, message.title, kind, body_format=NotifyFormat.MARKDOWN)
    return tuple(result.results)


def _reason(result: NotifyResult) -> str:
    """Why a service did not take it. Only its status is repeated: what else Apprise tells may hold a secret."""
    codes = [found[1] for entry in result.logs() if (found := re.search(r"error=(\d{3})\b", entry.message))]
    return f"HTTP {codes[-1]}" if codes else "not reached, or it refused: try its URL with the command apprise"
