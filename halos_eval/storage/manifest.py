"""The manifest of a suite's data: what was staged into the cache, in which revision, and what cannot be had and why.

``halos-eval fetch`` writes it; ``plan`` and the other stages read it. What it has pinned stays pinned: staging into the
same manifest again adds what is missing. A stage that is given one reads the data that it names and nothing else.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_bytes, digest_json
from halos_eval.errors import DataUnavailable
from halos_eval.hub import cache_root
from halos_eval.storage import filesystem
from halos_eval.storage.records import read_model

Kind = Literal["dataset", "file", "metric", "model", "nltk"]


def _relative(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts:
        raise ValueError(f"{path!r} leads out of the cache")
    return path


class Item(BaseModel):
    """One thing in the cache."""

    model_config = FROZEN

    kind: Kind
    """dataset (made by ``load_dataset``), file (of AlpacaEval's data), metric (a script), model, nltk (a package)."""
    asked: str
    """What it is asked for by: the options of ``load_dataset``, or a name."""
    repo: str
    """Repository on the hub, or where else it is from."""
    revision: str | None
    """Commit of the repository; None where there is none."""
    bytes: int
    """Size of the files that were fetched."""
    digest: str
    """Digest of what is read, whatever else the commit has changed; the commit for a model."""
    path: Annotated[str, AfterValidator(_relative)]
    """Where it is below HF_HOME."""
    needed_by: tuple[str, ...]
    """Parts that need it."""

    @property
    def location(self) -> Path:
        """Where it should be on this machine."""
        return cache_root() / self.path

    @property
    def present(self) -> bool:
        """Whether this machine's cache has it."""
        return self.location.exists()

    def open(self) -> Path:
        """Where it is on this machine. Raises DataUnavailable where its cache lacks it."""
        if not self.present:
            raise DataUnavailable(
                f"{self.repo} is not in the cache ({self.location}): mount the cache that was staged, or run "
                "`halos-eval fetch` with the same manifest here"
            )
        return self.location


class Part(BaseModel):
    """One part of the suite (alpaca_eval or a task), or a checkpoint."""

    model_config = FROZEN

    definition: str
    """Digest of all that determines what it needs."""
    reason: str | None = None
    """Why it cannot be had; None if all of it is there."""


class Manifest(BaseModel):
    """What a suite needs from outside, pinned."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    suite: str
    """Name of the suite."""
    parts: dict[str, Part] = {}
    """Parts of the suite, and checkpoints as ``checkpoint_part`` calls them."""
    items: tuple[Item, ...] = ()
    """All that they need, by kind and name."""
    pins: dict[str, str] = {}
    """Commit of each branch that was asked for, as TYPE/REPO@BRANCH."""

    def look(self, kind: Kind, asked: str) -> Item | None:
        """The item that is asked for by ``asked``, if there is one."""
        return next((item for item in self.items if (item.kind, item.asked) == (kind, asked)), None)

    def find(self, kind: Kind, asked: str) -> Item:
        """The same. Raises DataUnavailable where there is none."""
        if item := self.look(kind, asked):
            return item
        raise DataUnavailable(
            f"the manifest of suite {self.suite} has no {kind} {asked}: run `halos-eval fetch` with it again, for "
            "the suite and the checkpoint that are evaluated"
        )

    def needs(self, part: str) -> list[Item]:
        """All that a part needs. Raises DataUnavailable with the reason where it cannot be had."""
        if part not in self.parts:
            raise DataUnavailable(f"{part} is not staged: run `halos-eval fetch {self.suite}` with this manifest again")
        if reason := self.parts[part].reason:
            raise DataUnavailable(reason)
        return [item for item in self.items if part in item.needed_by]

    def digest(self, part: str) -> str:
        """Digest of the content of all that a part needs: commits that change nothing in it give the same."""
        return digest_json({f"{item.kind} {item.asked}": item.digest for item in self.needs(part)})

    def ready(self, part: str, definition: str) -> bool:
        """Whether a part is staged as it is defined now, and this machine's cache has it."""
        return self.parts.get(part) == Part(definition=definition) and all(item.present for item in self.needs(part))


def checkpoint_part(location: str) -> str:
    """How ``parts`` calls a checkpoint: by its folder, or NAMESPACE/NAME[@REVISION] on the hub."""
    return f"checkpoint:{location}"


def read_manifest(url: str) -> Manifest | None:
    """The manifest at ``url``, or None where there is none. Raises StoreError where it is damaged."""
    return read_model(url, Manifest)


def write_manifest(url: str, manifest: Manifest) -> None:
    """Keep the manifest in the cache, for stages that cannot reach the store, then at ``url``. Raises StoreError."""
    data = _encode(manifest)
    cached = str(cache_root() / cached_path(manifest))
    if not filesystem.exists(cached):
        filesystem.write_bytes(cached, data)
    if read_manifest(url) != manifest:
        filesystem.write_bytes(url, data)


def cached_path(manifest: Manifest) -> str:
    """Where below HF_HOME staging keeps this very manifest: a later one has another name."""
    return f"halos-eval/{digest_bytes(_encode(manifest))[:16]}.json"


def _encode(manifest: Manifest) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()
