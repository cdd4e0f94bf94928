"""Digests of weights that were read before. They hold as long as sizes, times and inodes of the files are the same."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from halos_eval.checkpoints.download import Copy
from halos_eval.checkpoints.weights import (
    ScoredFolder,
    Stamps,
    Weights,
    in_storage,
    read_folder,
    scored_files,
    stamps_of,
    state_of_stamps,
)
from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_json
from halos_eval.errors import DataUnavailable
from halos_eval.hub import cache_root
from halos_eval.storage import layout
from halos_eval.storage.records import readable

log = logging.getLogger(__name__)


class KnownWeights(BaseModel):
    """The weights of a checkpoint, as they were at its latest plan."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    location: str
    """Folder or hub repository of the checkpoint."""
    revision: str | None = None
    """Requested revision of a hub repository."""
    digest: str
    """Digest of the checkpoint."""
    folders: tuple[ScoredFolder, ...]
    """The checkpoint's folder and, for an adapter, that of its base; none for hub repositories."""

    @property
    def unchanged(self) -> bool:
        """Whether the files are as they were. A hub repository's digest is its commit, which cannot change."""
        return all(_stamps(folder.path) == folder.stamps for folder in self.folders)


class Reader:
    """Reads folders for ``inspect``: the digest of an unchanged folder is not computed again."""

    def __init__(self, known: KnownWeights | None, copy: Copy | None = None) -> None:
        """``copy`` is that of the checkpoint, if it is in object storage."""
        self._known = {folder.path: folder for folder in known.folders} if known else {}
        self._copy = copy

    def __call__(self, folder: str) -> ScoredFolder:
        """Return the folder with its digest. Raise DataUnavailable if it is in object storage and was not copied."""
        known, stamps = self._known.get(folder), _stamps(folder)
        if known and known.stamps == stamps:
            return known
        if not in_storage(folder):
            return read_folder(folder)
        if not self._copy or (self._copy.location, self._copy.stamps) != (folder, stamps):
            raise DataUnavailable(
                f"the content of {folder} is not known{' any more' if self._copy else ''}: `halos-eval fetch` copies "
                "it and computes its digest. Run it, or clear the task `fetch`"
            )
        return ScoredFolder(path=folder, stamps=stamps, digest=self._copy.digest)


def carried(folders: Iterable[ScoredFolder], copy: Copy | None) -> tuple[str, ...]:
    """Return what a stage needs to know the digests of these folders without reading them, for ``Carried``."""
    pairs = {state_of_stamps(one.stamps): one.digest for one in folders if not in_storage(one.path)}
    return tuple(f"{state}:{digest}" for state, digest in (pairs | ({copy.state: copy.digest} if copy else {})).items())


class Carried:
    """Reads folders for ``inspect`` in a stage: a plan's digest holds for a folder with the same names, sizes, times.

    Inodes are not compared, because the same file can have another one on another machine.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._digests = dict(one.split(":", 1) for one in known)

    def __call__(self, folder: str) -> ScoredFolder:
        """Return the folder with its digest."""
        stamps = scored_files(Path(folder))
        digest = self._digests.get(state_of_stamps(stamps))
        return ScoredFolder(path=folder, stamps=stamps, digest=digest) if digest else read_folder(folder)


def recall_copy(root: str, checkpoint: str) -> Copy | None:
    """Return the copy that `fetch` has made of a checkpoint; None without one. A damaged file counts as none."""
    copy, damage = readable(layout.copy_url(root, checkpoint), Copy)
    if damage:
        log.warning("the copy of %s is made again: %s", checkpoint, damage)
    return copy


def known_weights(location: str, revision: str | None, weights: Weights) -> KnownWeights:
    """Return what to remember of the checkpoint at ``location``."""
    # The hub's cache never changes a file, and is not on every machine.
    own = tuple(folder for folder in weights.folders if not Path(folder.path).is_relative_to(cache_root()))
    return KnownWeights(location=location, revision=revision, digest=weights.digest, folders=own)


def state_of(locations: Iterable[str]) -> str:
    """Return a digest of the stamps of the files in these folders. It changes if they are saved again.

    Objects are not listed for it: the time of their registration changes as well.
    """
    return digest_json({location: {} if in_storage(location) else _stamps(location) for location in locations})


def recall(root: str, checkpoint: str, location: str, revision: str | None = None) -> KnownWeights | None:
    """Return the weights of a checkpoint at its latest plan, whether they have changed or not; None without a plan.

    A damaged file counts as none. Raise StoreError.
    """
    known, damage = readable(layout.weights_url(root, checkpoint), KnownWeights)
    if damage:
        log.warning("the weights of %s are read again: %s", checkpoint, damage)
    return known if known and (known.location, known.revision) == (location, revision) else None


def _stamps(folder: str) -> Stamps:
    """Return the stamps of the scored files of a folder; none if it cannot be read. Raise StoreError for a bucket."""
    try:
        return stamps_of(folder)
    except OSError:
        return {}
