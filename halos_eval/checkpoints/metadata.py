"""One folder with weights, on a disk or in object storage: its completion time and its metadata."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from halos_eval.checkpoints.files import COUNTED, METADATA
from halos_eval.checkpoints.links import check_links
from halos_eval.checkpoints.registry import Checkpoint, Metadata, with_safe_name
from halos_eval.checkpoints.safetensors import check_weights, files_of, read
from halos_eval.checkpoints.weights import in_storage, short_name
from halos_eval.config.yaml_file import parse_yaml, validated
from halos_eval.errors import BadInput
from halos_eval.storage import filesystem
from halos_eval.storage.filesystem import Entry

LARGEST_METADATA = 100_000  # bytes
Model = TypeVar("Model", bound=BaseModel)


class WeightsFolder(NamedTuple):
    """A folder with its entries."""

    url: str
    """Path on a disk, or URL."""
    files: Mapping[str, Entry]
    """Entries of the folder, from ``files_of``."""

    @property
    def finished(self) -> datetime | None:
        """UTC time of the newest counted file, or None. Completing an incomplete checkpoint changes it."""
        times = [one.modified for name, one in self.files.items() if one.modified and COUNTED.fullmatch(name)]
        return max(times, default=None)

    def checkpoint(
        self, original: str, registered: datetime | None, own: Metadata, root: str | None = None
    ) -> Checkpoint:
        """Return this folder as the checkpoint that its registry calls ``original``, with the registry's metadata.

        ``root`` is the registry's folder, into which links may lead. Raises BadInput, StoreError.
        """
        check_links(self.url, root)
        check_weights(self.url, self.files)
        name, metadata = with_safe_name(original, own.over(self.metadata()))
        return Checkpoint(name=name, location=self.url, registered=registered, metadata=metadata, root=root)

    def metadata(self) -> Metadata:
        """Return the metadata beside the weights; empty if there is none. Raises BadInput, StoreError."""
        if METADATA not in self.files or self.files[METADATA].is_folder:
            return Metadata()
        path = filesystem.join(self.url, METADATA)
        if self.files[METADATA].size > LARGEST_METADATA:
            raise BadInput(
                f"{path} is too large ({self.files[METADATA].size} bytes); expected at most {LARGEST_METADATA} bytes"
            )
        return with_template(parse(read(path), Metadata, path), self.url, path)


def look_into(url: str) -> WeightsFolder:
    """Return the folder ``url`` with its entries; none if it does not exist. Raises BadInput, StoreError."""
    return WeightsFolder(url=url, files=files_of(url))


def from_location(location: str) -> Checkpoint:
    """Return the checkpoint of a folder, s3:// URL or hub repository of a command. Raises BadInput, StoreError."""
    location = location.rstrip("/") if in_storage(location) else location
    metadata = look_into(location).metadata() if in_storage(location) or Path(location).is_dir() else Metadata()
    name, metadata = with_safe_name(short_name(location), metadata)
    return Checkpoint(name=name, location=location, metadata=metadata)


def folder_url(location: str, home: str | None = None) -> str:
    """Return a folder as a plain path or s3:// URL; ./PATH is relative to ``home``. Raises BadInput for other URLs."""
    if location.startswith(("./", "../")) and home:
        scheme, separator, path = home.rpartition("://")
        return scheme + separator + posixpath.normpath(filesystem.join(path, location))
    if location.startswith(("/", "file:///", "s3://")):
        return location.removeprefix("file://").rstrip("/") or "/"
    raise BadInput(f"{location} is not a folder; expected /PATH, file:///PATH or s3://BUCKET/PREFIX")


def parse(data: bytes, model: type[Model], where: str, context: object = None) -> Model:
    """Return a YAML document as a ``model``; an empty one has all defaults. Raises BadInput with all its errors."""
    document = parse_yaml(data, where)
    return validated({} if document is None else document, model, where, context=context)


def with_template(metadata: Metadata, folder: str, where: str) -> Metadata:
    """Return ``metadata`` with the full path of a chat template in ``folder``. Raises BadInput if it is outside."""
    name = metadata.chat_template
    if not name or not ("/" in name or name.endswith(".jinja")):
        return metadata
    full = _inside(folder, name)
    if full is None:
        raise BadInput(f"{where}: chat_template {name} is outside {folder}. Move the template into that folder")
    return metadata.model_copy(update={"chat_template": full})


def _inside(folder: str, name: str) -> str | None:
    if "\0" in name:
        return None
    if "://" in folder:
        path = posixpath.normpath(name)
        return None if path.startswith(("/", "..")) else filesystem.join(folder, path)
    full = (Path(folder) / name).resolve()
    return str(full) if full.is_relative_to(Path(folder).resolve()) else None
