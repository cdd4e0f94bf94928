"""Remove from the cache (HF_HOME) what `halos-eval fetch` put there and no manifest of the store names any more.

The copies of manifests that `fetch` leaves in the cache say what it fetched. Nothing else is touched. Other stores may
use the same cache: their manifests are not known here, so the command removes nothing of the cache unless asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput
from halos_eval.hub import cache_root
from halos_eval.planning.prune import Removal
from halos_eval.storage import filesystem
from halos_eval.storage.manifest import Item, Kind, Manifest, cached_path, read_manifest

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo

NAME = r"[A-Za-z0-9_][^/]*"
FOLDERS: dict[Kind, re.Pattern[str]] = {
    "dataset": re.compile(rf"datasets(/{NAME}){{4}}"),
    "metric": re.compile(rf"modules(/{NAME}){{3,5}}"),
    "nltk": re.compile(rf"nltk_data/{NAME}/{NAME}\.zip"),
}
"""Paths of items outside the hub's cache. A path of another form is left alone."""
TYPES: dict[Kind, str] = {"dataset": "dataset", "file": "dataset", "metric": "space", "model": "model"}
"""Type of the repository on the hub, by kind of item."""
REASON = "no manifest of the store names it any more"


class _Copy(NamedTuple):
    """A copy of a manifest in the cache."""

    path: Path
    manifest: Manifest
    modified: datetime


def unused(root: str, before: datetime) -> list[Removal]:
    """Return what can be removed of this machine's cache, the copies of manifests last.

    ``before`` (UTC): what a later copy names stays. Raise BadInput if the store has no manifest, and StoreError if one
    is unreadable.
    """
    named = list(_manifests(root))
    if not named:
        raise BadInput(f"{root} has no manifest, so all fetched data would be removed. Check HALOS_EVAL_STORE")
    used = [item for manifest in named for item in manifest.items]
    old = []
    for copy in _copies():
        if copy.modified < before:
            old.append(copy)
        else:
            used += copy.manifest.items
    items = {item for copy in old for item in copy.manifest.items}
    removals = [*_revisions(items, used), *_folders(items, used)]
    still = {cached_path(manifest) for manifest in named}
    return removals + [
        Removal(str(one.path), one.path.stat().st_size, REASON, (str(one.path),))
        for one in old
        if f"halos-eval/{one.path.name}" not in still
    ]


def _manifests(root: str) -> Iterator[Manifest]:
    for url in filesystem.find(filesystem.join(root, "manifests"), ".json"):
        if manifest := read_manifest(url):
            yield manifest


def _copies() -> Iterator[_Copy]:
    """Yield the copies that `fetch` wrote: their names are their digests."""
    for path in sorted((cache_root() / "halos-eval").glob("*.json")):
        data = b"" if path.is_symlink() else path.read_bytes()
        if digest_bytes(data)[:16] == path.stem:
            try:
                manifest = Manifest.model_validate_json(data)
            except ValidationError:  # of another version
                continue
            yield _Copy(path, manifest, datetime.fromtimestamp(path.stat().st_mtime, UTC))


def _revisions(items: Iterable[Item], used: Iterable[Item]) -> Iterator[Removal]:
    """Yield the revisions in the hub's cache that only ``items`` name, for each repository."""
    from huggingface_hub import scan_cache_dir

    hub = cache_root() / "hub"
    gone = {key for item in items if (key := _revision(item))} - {key for item in used if (key := _revision(item))}
    if not gone or not hub.is_dir():
        return
    for repo in sorted(scan_cache_dir(hub).repos, key=lambda repo: str(repo.repo_path)):
        commits = {commit for kind, name, commit in gone if (kind, name) == (repo.repo_type, repo.repo_id)}
        found = commits & {one.commit_hash for one in repo.revisions}
        parts = [repo.repo_path / name for name in ("blobs", "refs", "snapshots")]
        if found and all(filesystem.inside(str(cache_root()), str(part)) for part in parts):
            yield _revisions_of(repo, found)


def _revision(item: Item) -> tuple[str, str, str] | None:
    kind = TYPES.get(item.kind)
    return (kind, item.repo, item.revision) if kind and item.revision else None


def _revisions_of(repo: CachedRepoInfo, commits: set[str]) -> Removal:
    """Return the removal of these revisions of a repository, and of the files that no other revision has."""
    removed = [one for one in repo.revisions if one.commit_hash in commits]
    files = {file.blob_path: file.size_on_disk for one in removed for file in one.files}
    shared = {file.blob_path for one in repo.revisions if one.commit_hash not in commits for file in one.files}
    # Links in a snapshot could lead elsewhere.
    blobs = [path for path in files if path not in shared and path.parent == (repo.repo_path / "blobs").resolve()]
    refs = [repo.repo_path / "refs" / ref for one in removed for ref in one.refs]
    paths = [*refs, *(one.snapshot_path for one in removed), *blobs]
    url = f"{repo.repo_path} ({', '.join(sorted(commit[:12] for commit in commits))})"
    return Removal(url, sum(files[path] for path in blobs), REASON, tuple(map(str, paths)))


def _folders(items: Iterable[Item], used: Iterable[Item]) -> Iterator[Removal]:
    """Yield the prepared datasets, metric scripts and packages that only ``items`` name."""
    root, kept = cache_root(), {item.path for item in used}
    for item in sorted({item.path: item for item in items}.values(), key=lambda item: item.path):
        form = FOLDERS.get(item.kind)
        if not form or not form.fullmatch(item.path) or item.path in kept:
            continue
        if not filesystem.inside(str(root), str(item.location)):
            continue
        # The archive is first, because a package with an archive counts as complete.
        paths = [item.location, item.location.with_suffix("")] if item.kind == "nltk" else [item.location]
        present = [path for path in paths if path.exists()]
        if present:
            yield Removal(str(item.location), sum(map(_size, present)), REASON, tuple(map(str, present)))


def _size(path: Path) -> int:
    return sum(one.size for one in filesystem.tree(str(path)).values()) if path.is_dir() else path.stat().st_size
