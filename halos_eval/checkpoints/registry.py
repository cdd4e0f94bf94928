"""What a registry is: it lists the checkpoints that were registered in an interval, and gives one by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator

from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput, DataUnavailable, StoreError

LOOKERS = 16  # threads: they wait for disks and servers
SHOWN = 10  # names in the message about an unknown one
Found = TypeVar("Found")


def _utc(value: Any) -> datetime:
    """Read here and not by pydantic, which would take 20261101 for seconds since 1970."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ValueError("give a day or a time, such as 2026-11-01 or 2026-11-01T12:00:00Z")
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{value} is no time in UTC") from error


Moment = Annotated[datetime, BeforeValidator(_utc)]
"""A time in UTC. Without a time zone it is meant in UTC; a day is its first moment."""


class Metadata(BaseModel):
    """What is known of a checkpoint besides its weights: halos_eval.yaml beside them, and what the registry says."""

    model_config = FROZEN

    chat_template: str | None = None
    """chatml, or a Jinja file beside the weights (default: the checkpoint's own template)."""
    stop: tuple[str, ...] = ()
    """Further stop strings for sampling."""
    profile: str | None = None
    """GPU profile, from the cluster's file (default: the suite's)."""
    tags: dict[str, str] = {}
    """What people want to select and compare by: base model, method, ..."""

    def over(self, below: Metadata) -> Metadata:
        """What is set here, else what ``below`` has; the tags of both."""
        own = {key: getattr(self, key) for key in self.model_fields_set}
        return below.model_copy(update=own | {"tags": below.tags | self.tags})


class Checkpoint(BaseModel):
    """A registered checkpoint."""

    model_config = FROZEN

    name: str
    """Name in the registry and in tables."""
    location: str
    """Folder, s3:// URL of a folder, or hub repository."""
    revision: str | None = None
    """Commit, tag or branch of a hub repository; None for a folder, whose weights are digested when it is planned."""
    registered: Moment | None = None
    """When it was registered; None where it is given by its place and not by a registry."""
    metadata: Metadata = Metadata()
    """Chat template, stop strings, GPU profile, tags."""


class Listing(NamedTuple):
    """What a registry holds."""

    checkpoints: list[Checkpoint]
    """By the time of their registration, then by name."""
    skipped: dict[str, str]
    """Name of what cannot be evaluated (half-written, damaged), with the reason and the remedy."""


class Registry(Protocol):
    """A place that checkpoints come from."""

    def registered(self, start: datetime | None = None, end: datetime | None = None) -> Listing:
        """The checkpoints registered from ``start`` up to, not including, ``end``. Both are aware; None is no limit.

        What is wrong with one checkpoint costs that one only. Raises BadInput, RegistryUnavailable or StoreError where
        the registry itself cannot be read.
        """

    def get(self, name: str) -> Checkpoint:
        """The checkpoint called ``name``.

        Raises NotRegistered, BadInput where it is not complete or damaged, RegistryUnavailable, StoreError.
        """


class NotRegistered(BadInput):
    """The registry holds no checkpoint of that name."""


class RegistryUnavailable(DataUnavailable):
    """The registry itself cannot be read. It is asked again: servers and mounts come back."""

    retryable = True


def not_registered(name: str, place: str, names: Iterable[str]) -> NotRegistered:
    """The error about an unknown name, with some that are known."""
    known = ", ".join(sorted(names)[:SHOWN]) or "none"
    return NotRegistered(f"there is no checkpoint {name!r} in {place}: there are {known}")


def in_interval(moment: datetime, start: datetime | None, end: datetime | None) -> bool:
    """Whether ``moment`` is in [start, end)."""
    return (start is None or start <= moment) and (end is None or moment < end)


def look_at_all(
    names: Iterable[str], look: Callable[[str], Found | None], one_storage: bool
) -> tuple[dict[str, Found], dict[str, str]]:
    """Look at many at once: what was found under each name, and why there is nothing to be had under others.

    ``look`` gives None for what is not in question. What is wrong with one costs that one only; but if all are in the
    registry's ``one_storage`` and that fails, so does the registry. Raises StoreError, RegistryUnavailable.
    """

    def one(name: str) -> tuple[Found | None, str]:
        try:
            return look(name), ""
        except BadInput as error:
            return None, str(error)
        except StoreError as error:
            if one_storage:
                raise
            return None, str(error)

    names = list(names)
    with ThreadPoolExecutor(LOOKERS) as pool:
        looked = dict(zip(names, pool.map(one, names), strict=True))
    found = {name: thing for name, (thing, _) in looked.items() if thing is not None}
    return found, {name: why for name, (_, why) in looked.items() if why}


def listing(checkpoints: Iterable[Checkpoint], skipped: dict[str, str]) -> Listing:
    """A listing in order."""
    first = datetime.min.replace(tzinfo=UTC)
    return Listing(sorted(checkpoints, key=lambda one: (one.registered or first, one.name)), skipped)
