"""The protocol of registries: list the checkpoints registered in an interval, and return one by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from halos_eval.config.chat import SWITCHES, ChatSettings, Scalar, TemplateArguments, Text
from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput, DataUnavailable, StoreError
from halos_eval.storage.layout import is_original, safe_name
from halos_eval.untrusted import shown_name, whole

THREADS = 16  # they wait for disks and servers
SHOWN = 10  # names in the message about an unknown name
ORIGINAL_NAME = "original_name"
"""Tag with the registry's own name of a checkpoint whose name was replaced."""
Found = TypeVar("Found")


def _utc(value: Any) -> datetime:
    """Return a day or time in UTC. pydantic alone would read 20261101 as seconds since 1970."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ValueError("expected a day or a time, such as 2026-11-01 or 2026-11-01T12:00:00Z")
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{value} is out of range in UTC") from error


Moment = Annotated[datetime, BeforeValidator(_utc)]
"""A time in UTC. Values without a time zone are in UTC; a day is its first moment."""


class Metadata(BaseModel):
    """Metadata of a checkpoint, from halos_eval.yaml beside the weights and from the registry."""

    model_config = FROZEN

    chat_template: str | None = None
    """chatml, or a Jinja file beside the weights (default: the checkpoint's own template)."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Additional stop strings for sampling, and for tasks with the chat template."""
    system_instruction: Text | None = None
    """Text of the system turn for this model (default: the suite's)."""
    chat_template_args: TemplateArguments = {}
    """Arguments of the chat template for this model, such as reasoning_effort; they override the suite's."""
    think_start_token: Text | None = None
    """Text that begins the model's thinking (default: the suite's, or <think>)."""
    think_end_token: Text | None = None
    """Text that ends the model's thinking (default: the suite's, or </think>). It declares that the model may think."""
    profile: str | None = None
    """GPU profile from the cluster file (default: the suite's)."""
    tags: dict[str, str] = {}
    """Keys and values for selecting and comparing checkpoints: base model, method, ..."""

    @field_validator("chat_template_args")
    @classmethod
    def _no_switch(cls, arguments: dict[str, Scalar]) -> dict[str, Scalar]:
        if wrong := [name for name in SWITCHES if name in arguments]:
            raise ValueError(f"{wrong[0]} is the suite's choice. Remove it here, and set thinking in the suite")
        return arguments

    @property
    def chat(self) -> dict[str, Any]:
        """What it says of prompts and thinking, by the names of ``ChatSettings``; without what it does not say."""
        return {name: value for name in ChatSettings.model_fields if (value := getattr(self, name, None))}

    def over(self, below: Metadata) -> Metadata:
        """Return ``below``, overridden by the values that are set here; tags are merged."""
        own = {key: getattr(self, key) for key in self.model_fields_set}
        return below.model_copy(update=own | {"tags": below.tags | self.tags})


class Checkpoint(BaseModel):
    """A registered checkpoint."""

    model_config = FROZEN

    name: str
    """Name in tables and commands: the registry's name, or what replaces it, see ``layout.safe_name``."""
    location: str
    """Folder, s3:// URL of a folder, or hub repository."""
    revision: str | None = None
    """Commit, tag or branch of a hub repository; None for a folder, whose weights are digested during planning."""
    registered: Moment | None = None
    """Time of the registration; None for a checkpoint that was given by its location."""
    root: str | None = None
    """Folder of the registry, into which links of the checkpoint may lead; None: links stay in its own folder."""
    metadata: Metadata = Metadata()
    """Chat template, stop strings, thinking, GPU profile, tags."""


def with_safe_name(original: str, metadata: Metadata) -> tuple[str, Metadata]:
    """Return the name of the checkpoint that its registry calls ``original``, and its metadata. Raises BadInput.

    If the name is replaced, the tag ``original_name`` has the original.
    """
    name = safe_name(original)
    if name == original:
        return name, metadata
    return name, metadata.model_copy(update={"tags": metadata.tags | {ORIGINAL_NAME: original}})


class Listing(NamedTuple):
    """The checkpoints of a registry."""

    checkpoints: list[Checkpoint]
    """Checkpoints in the order of registration, then of names."""
    skipped: dict[str, str]
    """Incomplete or damaged checkpoints by name, with the reason and the remedy."""


class Registry(Protocol):
    """A source of checkpoints."""

    def registered(self, start: datetime | None = None, end: datetime | None = None) -> Listing:
        """Return the checkpoints registered in [``start``, ``end``), which are times with a zone; None is no limit.

        A checkpoint with an error is in ``skipped``; others are unaffected. Raises BadInput, RegistryUnavailable or
        StoreError if the registry itself cannot be read.
        """

    def get(self, name: str) -> Checkpoint:
        """Return the checkpoint ``name``.

        Raises NotRegistered, BadInput if it is incomplete or damaged, RegistryUnavailable, StoreError.
        """


class NotRegistered(BadInput):
    """The registry has no checkpoint of that name."""


class RegistryUnavailable(DataUnavailable):
    """The registry itself cannot be read. Retried, because servers and mounts may recover."""

    retryable = True


def not_registered(name: str, registry: str, names: Iterable[str]) -> NotRegistered:
    """Return the error for an unknown name, with some known names."""
    known = ", ".join(sorted(names)[:SHOWN]) or "none"
    return NotRegistered(f"unknown checkpoint {name!r} in {registry}; available: {known}")


def in_interval(moment: datetime, start: datetime | None, end: datetime | None) -> bool:
    """Return whether ``moment`` is in [start, end)."""
    return (start is None or start <= moment) and (end is None or moment < end)


def look_at_all(
    names: Iterable[str], look: Callable[[str], Found | None], one_storage: bool
) -> tuple[dict[str, Found], dict[str, str]]:
    """Call ``look`` for all names in parallel; return the results, and the reasons for the names that failed.

    Names for which ``look`` returns None are left out. A StoreError is a reason like others, except with
    ``one_storage``: then all names share the registry's storage, and it is raised. Raises StoreError,
    RegistryUnavailable.
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
    with ThreadPoolExecutor(THREADS) as pool:
        looked = dict(zip(names, pool.map(one, names), strict=True))
    found = {name: thing for name, (thing, _) in looked.items() if thing is not None}
    return found, {name: why for name, (_, why) in looked.items() if why}


def listing(checkpoints: Iterable[Checkpoint], skipped: dict[str, str]) -> Listing:
    """Return a listing in order. ``skipped`` has the registry's own names."""
    # XComs and messages take only UTF-8.
    reasons = {safe_name(name) if is_original(name) else shown_name(name): whole(why) for name, why in skipped.items()}
    first = datetime.min.replace(tzinfo=UTC)
    return Listing(sorted(checkpoints, key=lambda one: (one.registered or first, one.name)), reasons)
