"""The manifest of a suite's data: the items in the cache with their revisions, and the reasons for unavailable data.

``halos-eval fetch`` writes it; ``plan`` and the other stages read it. Its pins do not change: fetching into the same
manifest again adds missing items only. A stage with a manifest reads only the data that the manifest names.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ValidationInfo, field_validator

from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_bytes, digest_file, digest_files, digest_json
from halos_eval.errors import DataUnavailable
from halos_eval.hub import cache_root
from halos_eval.storage import filesystem
from halos_eval.storage.records import read_model

# Compiled modules, locks, and tables that a task derived from a dataset.
ADDED = re.compile(r"__pycache__|.*\.pyc|.*\.lock|cache-.*\.arrow")
Kind = Literal["dataset", "file", "metric", "model", "nltk"]


def _relative(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts:
        raise ValueError(f"path {path!r} is outside the cache; expected a relative path without '..'")
    return path


class Item(BaseModel):
    """One dataset, file, metric script, model or NLTK package in the cache."""

    model_config = FROZEN

    kind: Kind
    """dataset (from ``load_dataset``), file (of AlpacaEval's data), metric (a script), model, nltk (a package)."""
    asked: str
    """The key of the item: the options of ``load_dataset``, or a name."""
    repo: str
    """Repository on the hub, or the name of another source."""
    revision: str | None
    """Commit of the repository; None for sources without commits."""
    bytes: int
    """Size of the fetched files."""
    digest: str
    """Digest of the content that a task reads, independent of other changes in the commit; for a model, the commit."""
    path: Annotated[str, AfterValidator(_relative)]
    """Path relative to HF_HOME."""
    needed_by: tuple[str, ...]
    """Parts that need this item."""
    stored: str | None = None
    """Digest of the files at ``path`` as they were fetched; None for a model, and in manifests of version 1."""

    @property
    def location(self) -> Path:
        """Path of the item on this machine, whether it exists or not."""
        return cache_root() / self.path

    @property
    def present(self) -> bool:
        """Whether this machine's cache has the item."""
        return self.location.exists()

    def open(self) -> Path:
        """Return the item's path on this machine.

        Raises DataUnavailable if the cache does not have it, or not as it was fetched.
        """
        if not self.present:
            raise DataUnavailable(
                f"{self.repo} is not in the cache ({self.location}). Mount the cache that `halos-eval fetch` filled, "
                "or run it here with the same manifest"
            )
        if self.stored and digest_stored(self.location) != self.stored:
            raise DataUnavailable(
                f"{self.repo} in the cache ({self.location}) is not as it was fetched: a file was changed, added or "
                "removed. Delete it there, and run `halos-eval fetch` again with the same manifest"
            )
        return self.location


class Part(BaseModel):
    """One part of the suite (alpaca_eval or a task), or a checkpoint."""

    model_config = FROZEN

    definition: str
    """Digest of everything that determines the data it needs."""
    reason: str | None = None
    """Why its data is unavailable; None if all of it is in the cache."""


class Manifest(BaseModel):
    """The pinned data of a suite."""

    model_config = FROZEN

    version: Literal[1, 2, 3] = 3
    """Version of this format; 1 has no digests of stored files, and those of metrics in 2 have the cache's path."""
    suite: str
    """Name of the suite."""
    parts: dict[str, Part] = {}
    """Parts of the suite by name, and checkpoints by the keys of ``checkpoint_part``."""
    items: tuple[Item, ...] = ()
    """All data of the parts, sorted by kind and key."""
    pins: dict[str, str] = {}
    """Commit of each requested branch, as TYPE/REPO@BRANCH."""

    @field_validator("items")
    @classmethod
    def _without_digests_of_version_2(cls, items: tuple[Item, ...], info: ValidationInfo) -> tuple[Item, ...]:
        if info.data.get("version") != 2:
            return items
        return tuple(item.model_copy(update={"stored": None}) if item.kind == "metric" else item for item in items)

    def look(self, kind: Kind, asked: str) -> Item | None:
        """Return the item with the key ``asked``, or None."""
        return next((item for item in self.items if (item.kind, item.asked) == (kind, asked)), None)

    def find(self, kind: Kind, asked: str) -> Item:
        """Return the item with the key ``asked``. Raises DataUnavailable if there is none."""
        if item := self.look(kind, asked):
            return item
        raise DataUnavailable(
            f"the manifest of suite {self.suite} has no {kind} {asked}. Run `halos-eval fetch` again with this "
            "manifest, for the same suite and checkpoint"
        )

    def needs(self, part: str) -> list[Item]:
        """Return all items that a part needs. Raises DataUnavailable with the reason if they are unavailable."""
        if part not in self.parts:
            raise DataUnavailable(
                f"{part} is not in the manifest. Run `halos-eval fetch {self.suite}` again with this manifest"
            )
        if reason := self.parts[part].reason:
            raise DataUnavailable(reason)
        return [item for item in self.items if part in item.needed_by]

    def digest(self, part: str) -> str:
        """Return the digest of the content that a part needs. Commits that do not affect the content keep it."""
        return digest_json({f"{item.kind} {item.asked}": item.digest for item in self.needs(part)})

    def ready(self, part: str, definition: str) -> bool:
        """Return whether a part was fetched by its current definition and is in this machine's cache."""
        return self.parts.get(part) == Part(definition=definition) and all(item.present for item in self.needs(part))


def digest_stored(path: Path) -> str:
    """Return the digest of a file or of the files in a folder of the cache, without what libraries add later."""
    if not path.is_dir():
        return digest_file(path)
    names = [one.relative_to(path) for one in path.rglob("*") if one.is_file() and not _is_added(one)]
    return digest_files(path, sorted(map(str, names)))


def _is_added(path: Path) -> bool:
    """Return whether a library has added this file; `evaluate` writes beside a script where in this cache it is."""
    beside_script = path.suffix == ".json" and path.with_suffix(".py").exists()
    return bool(beside_script or ADDED.fullmatch(path.name))


def checkpoint_part(location: str) -> str:
    """Return the key of a checkpoint in ``parts``, from its folder or NAMESPACE/NAME[@REVISION] on the hub."""
    return f"checkpoint:{location}"


def read_manifest(url: str) -> Manifest | None:
    """Return the manifest at ``url``, or None if it does not exist. Raises StoreError if it is damaged."""
    return read_model(url, Manifest)


def write_manifest(url: str, manifest: Manifest) -> None:
    """Write the manifest into the cache, for stages without access to the store, then to ``url``. Raises StoreError."""
    data = _encode(manifest)
    cached = str(cache_root() / cached_path(manifest))
    if not filesystem.exists(cached):
        filesystem.write_bytes(cached, data)
    if read_manifest(url) != manifest:
        filesystem.write_bytes(url, data)


def cached_path(manifest: Manifest) -> str:
    """Return the manifest's path relative to HF_HOME. The name has its digest, so a later manifest has another."""
    return f"halos-eval/{digest_bytes(_encode(manifest))[:16]}.json"


def _encode(manifest: Manifest) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()
