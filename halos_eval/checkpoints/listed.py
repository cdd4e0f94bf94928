"""The registry of a list in YAML, for models on a hub, old checkpoints and other folders.

checkpoints:
  - name: llama3-8b-kto
    location: /data/models/llama3-8b-kto/FINAL     # or s3://BUCKET/PREFIX, or NAMESPACE/NAME on the hub
    tags: {base_model: llama3-8b, method: kto}
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from halos_eval.checkpoints.metadata import folder_url, look_into, parse, with_template
from halos_eval.checkpoints.registry import (
    Checkpoint,
    Listing,
    Metadata,
    Moment,
    RegistryUnavailable,
    in_interval,
    listing,
    look_at_all,
    not_registered,
    with_safe_name,
)
from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput
from halos_eval.storage import filesystem
from halos_eval.storage.layout import safe_name

HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Reading(NamedTuple):
    """What the validation of an entry needs to know about its file."""

    home: str
    """The file's folder."""
    names: set[str]
    """Names of the entries before it."""


class Entry(Metadata):
    """One checkpoint. Its values override those in the halos_eval.yaml beside the weights; tags are merged."""

    name: str
    """Name of the checkpoint, which tables show unless it has unusual characters."""
    location: str
    """Folder (/PATH, or ./PATH relative to the list), s3:// URL of a folder, or NAMESPACE/NAME on the hub."""
    revision: str | None = None
    """Commit, tag or branch of a hub repository."""
    registered: Moment | None = Field(None, validate_default=True)
    """Day or time, in UTC unless it has a time zone (default: time of the folder's newest file)."""

    @field_validator("name")
    @classmethod
    def _safe_and_once(cls, name: str, info: ValidationInfo[Reading]) -> str:
        if name in info.context.names:
            raise ValueError(f"{name} is listed twice")
        info.context.names.add(name)
        try:
            safe_name(name)
        except BadInput as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("location")
    @classmethod
    def _full(cls, location: str, info: ValidationInfo[Reading]) -> str:
        try:
            return location if HUB.fullmatch(location) else folder_url(location, info.context.home)
        except BadInput as error:
            raise ValueError(f"{error}, or a hub repository NAMESPACE/NAME") from error

    @field_validator("revision")
    @classmethod
    def _of_a_hub(cls, revision: str | None, info: ValidationInfo[Reading]) -> str | None:
        if revision and not HUB.fullmatch(info.data.get("location", "a/b")):
            raise ValueError("revision is only valid for a hub repository. Remove it")
        return revision

    @field_validator("registered")
    @classmethod
    def _known(cls, registered: datetime | None, info: ValidationInfo[Reading]) -> datetime | None:
        if registered is None and HUB.fullmatch(info.data.get("location", "")):
            raise ValueError("a hub repository needs the time of its registration, such as 2026-11-01")
        return registered

    @property
    def own(self) -> Metadata:
        """The metadata that the list itself sets."""
        return Metadata(**{key: getattr(self, key) for key in self.model_fields_set & set(Metadata.model_fields)})


class CheckpointList(BaseModel):
    """The list."""

    model_config = FROZEN

    checkpoints: tuple[Entry, ...]
    """Entries in any order."""


class ListRegistry:
    """Checkpoints in a YAML file, on a disk or in object storage."""

    def __init__(self, url: str) -> None:
        self.url = url.removeprefix("file://")
        self.home = self.url.rpartition("/")[0] or "."

    def registered(self, start: datetime | None = None, end: datetime | None = None) -> Listing:
        """Return the checkpoints as in ``Registry``. Raises BadInput with all errors of the list."""
        entries = self._read()
        found, skipped = look_at_all(entries, lambda name: self._look(entries[name], start, end), one_storage=False)
        return listing(found.values(), skipped)

    def get(self, name: str) -> Checkpoint:
        """Return the checkpoint ``name`` as in ``Registry``."""
        entries = self._read()
        entry = {safe_name(one.name): one for one in entries.values()}.get(name) or entries.get(name)
        found = self._look(entry) if entry else None
        if found is None:
            raise not_registered(name, self.url, entries)
        return found

    def _read(self) -> dict[str, Entry]:
        try:
            data = filesystem.read_bytes(self.url)
        except FileNotFoundError as error:
            raise RegistryUnavailable(f"{self.url} does not exist. Check HALOS_EVAL_CHECKPOINTS") from error
        found = parse(data, CheckpointList, self.url, context=Reading(self.home, set()))
        return {entry.name: entry for entry in found.checkpoints}

    def _look(self, entry: Entry, start: datetime | None = None, end: datetime | None = None) -> Checkpoint | None:
        """Return the checkpoint of an entry; None if it was not registered in the interval."""
        own = with_template(entry.own, self.home, self.url)
        folder = None if HUB.fullmatch(entry.location) else look_into(entry.location)
        registered = entry.registered or (folder.finished if folder else None)
        if registered and not in_interval(registered, start, end):
            return None
        if folder:
            return folder.checkpoint(entry.name, registered, own)
        name, own = with_safe_name(entry.name, own)
        return Checkpoint(
            name=name, location=entry.location, revision=entry.revision, registered=registered, metadata=own
        )
