"""Digests of weights that were read before. They hold as long as sizes, times and inodes of the files are the same."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from halos_eval.checkpoints.weights import ScoredFolder, Stamp, Weights, read_folder, scored_files
from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_json
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

    def __init__(self, known: KnownWeights | None) -> None:
        self._known = {folder.path: folder for folder in known.folders} if known else {}

    def __call__(self, folder: Path) -> ScoredFolder:
        """Return the folder with its digest."""
        known = self._known.get(str(folder))
        return known if known and known.stamps == _stamps(known.path) else read_folder(folder)


def known_weights(location: str, revision: str | None, weights: Weights) -> KnownWeights:
    """Return what to remember of the checkpoint at ``location``."""
    # The hub's cache never changes a file, and is not on every machine.
    own = tuple(folder for folder in weights.folders if not Path(folder.path).is_relative_to(cache_root()))
    return KnownWeights(location=location, revision=revision, digest=weights.digest, folders=own)


def state_of(locations: Iterable[str]) -> str:
    """Return a digest of the stamps of the files in these folders. It changes if they are saved again."""
    return digest_json({location: _stamps(location) for location in locations})


def recall(root: str, checkpoint: str, location: str, revision: str | None = None) -> KnownWeights | None:
    """Return the weights of a checkpoint at its latest plan, whether they have changed or not; None without a plan.

    A damaged file counts as none. Raise StoreError.
    """
    known, damage = readable(layout.weights_url(root, checkpoint), KnownWeights)
    if damage:
        log.warning("the weights of %s are read again: %s", checkpoint, damage)
    return known if known and (known.location, known.revision) == (location, revision) else None


def _stamps(folder: str) -> dict[str, Stamp]:
    """Return the stamps of the scored files of a folder; none if it cannot be read."""
    try:
        return scored_files(Path(folder))
    except OSError:
        return {}
