"""Copies of weights from object storage in this machine's cache (HF_HOME), because vLLM loads weights from folders.

halos-eval/weights/KEY/            a complete copy; it was renamed to this
halos-eval/weights/KEY.partial/    what has arrived so far; a killed download continues there
halos-eval/weights/KEY.claims/     the process that downloads it now
halos-eval/weights/KEY.HEX.removed a copy that is being removed; the next download finishes what was killed
halos-eval/weights/KEY.uses/       one file for each evaluation that needs it, with the URL of the evaluation's turn

KEY is a digest of the URL and of the sizes and ETags of its objects, so other content has another folder, and whatever
processes write into one folder is the same. If they do not fit, the copies go that were not used for the longest time.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import uuid4

from pydantic import BaseModel

from halos_eval.checkpoints.copies_in_use import in_use, last_use, note_use
from halos_eval.checkpoints.files import COUNTED, SCORED
from halos_eval.checkpoints.safetensors import check_weights, files_of
from halos_eval.checkpoints.weights import (
    Stamps,
    cached_weights,
    scored_files,
    stamps_of_objects,
    state_of_stamps,
)
from halos_eval.config.cluster import WEIGHTS_GIB
from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_json
from halos_eval.errors import BadInput, DataUnavailable, Incomplete, StoreError
from halos_eval.hub import below_cache, cache_root
from halos_eval.storage import filesystem
from halos_eval.storage.claims import claimed, holder, process_alive, this_process
from halos_eval.storage.etags import Etag
from halos_eval.storage.filesystem import PIECE, Entry
from halos_eval.storage.records import read_model, write_model

log = logging.getLogger(__name__)

GIB = 1 << 30
WAIT = timedelta(hours=2)
"""How long another process's download of the same weights is waited for."""
THREADS = 8  # files that arrive at the same time
ABOUT = ".halos-eval.json"
EXPECTED = ".halos-eval.bytes"
FOLDER = re.compile(r"[0-9a-f]{32}(\.partial)?")
REMOVED = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{32}\.removed")


class Copy(BaseModel):
    """A complete copy in the cache of weights in object storage."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    location: str
    """s3:// URL of the folder."""
    stamps: Stamps
    """Stamps of its objects."""
    digest: str
    """SHA-256 of its files that determine a model's outputs, as for a folder on a disk."""
    state: str
    """Digest of the stamps of the copied files, from which a stage sees that they are unchanged."""
    bytes: int
    """Size of all copied files."""
    path: str
    """Folder of the copy, relative to HF_HOME."""


def copied(location: str, limit: int = WEIGHTS_GIB, turn: str | None = None) -> Copy:
    """Return the copy of the folder ``location`` (s3://) in this machine's cache; download what is missing of it.

    ``limit``: GiB of all copies together. ``turn``: URL of the claim of the evaluation that needs it; while that is
    held, the copy is not removed. Raise BadInput if the weights are missing, incomplete or too large, StoreError if
    it does not fit, and Incomplete if a retry can help.
    """
    listed = files_of(location)
    check_weights(location, listed)
    files = _counted(listed)
    folder = cached_weights() / _key(location, files)
    note_use(folder, turn)
    if found := _complete(folder):
        return found
    with claimed(f"{folder}.claims", this_process(), WAIT) as confirm:
        return _complete(folder) or _download(location, files, folder, limit, confirm)


@contextmanager
def reading(folder: str) -> Iterator[None]:
    """Keep a copy from being removed while the context is open. Other folders are not affected.

    The lock is not available on every shared file system; there only the turn of the evaluation keeps the copy. Raise
    DataUnavailable if it is being removed.
    """
    about = Path(folder) / ABOUT
    if not about.is_relative_to(cached_weights()) or not about.is_file():
        yield
        return
    with about.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataUnavailable(f"{folder} is being removed from the cache. Trigger the evaluation again") from error
        except OSError as error:
            log.warning("%s cannot be locked (%s)", about, error)
        yield


def _counted(files: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the objects that are copied: those that determine outputs, metadata and chat templates."""
    return {name: files[name] for name in sorted(files) if COUNTED.fullmatch(name) and not files[name].is_folder}


def _versions(files: Mapping[str, Entry]) -> dict[str, tuple[int, str]]:
    return {name: (entry.size, entry.state) for name, entry in files.items()}


def _key(location: str, files: Mapping[str, Entry]) -> str:
    return digest_json([location, _versions(files)])[:32]


def _complete(folder: Path) -> Copy | None:
    return read_model(str(folder / ABOUT), Copy) if folder.is_dir() else None


def _download(location: str, files: Mapping[str, Entry], folder: Path, limit: int, confirm: Callable[[], None]) -> Copy:
    partial = folder.with_name(f"{folder.name}.partial")
    size = sum(entry.size for entry in files.values())
    filesystem.write_bytes(str(partial / EXPECTED), str(size).encode())
    _make_space(partial, size, limit * GIB)
    log.info("copying %s (%.1f GiB)", location, size / GIB)
    digests = _fetch_all(location, files, partial)
    if _versions(_counted(files_of(location))) != _versions(files):
        raise Incomplete(f"{location} was saved again while it was copied. Run it again when it is saved")
    check_weights(str(partial), files_of(str(partial)))
    copy = Copy(
        location=location,
        stamps=stamps_of_objects(files),
        digest=digest_json({name: digests[name] for name in sorted(digests) if SCORED.fullmatch(name)}),
        state=state_of_stamps(scored_files(partial)),
        bytes=size,
        path=below_cache(folder),
    )
    write_model(str(partial / ABOUT), copy)
    confirm()
    partial.rename(folder)
    return copy


def _fetch_all(location: str, files: Mapping[str, Entry], folder: Path) -> dict[str, str]:
    """Copy all files, several at a time; return their SHA-256 by name. If one fails, the others stop."""
    stop = threading.Event()

    def fetch(name: str) -> str:
        return _fetch(filesystem.join(location, name), files[name], folder / name, stop)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return dict(zip(files, pool.map(fetch, files), strict=True))
        finally:
            stop.set()


def _fetch(url: str, entry: Entry, path: Path, stop: threading.Event) -> str:
    """Copy one file and return its SHA-256. What arrives damaged is copied once more. Raise Incomplete, StoreError."""
    size = 0
    for _ in range(2):
        try:
            size, sha256, etag = _append(url, entry, path, stop)
        except (filesystem.Replaced, FileNotFoundError) as error:
            raise Incomplete(
                f"{url} was replaced or removed while it was copied. Run it again when it is saved"
            ) from error
        except OSError as error:
            raise StoreError(
                f"{path}: {error}. Free space in HF_HOME and run it again; finished work is kept"
            ) from error
        if size == entry.size and not filesystem.damaged(url, entry.state, etag):
            return sha256
        log.warning("%s arrived damaged (%d of %d bytes)", url, size, entry.size)
        path.unlink(missing_ok=True)
    raise Incomplete(
        f"{url} arrived damaged twice (last {size} of {entry.size} bytes). Check the network, run it again"
    )


def _append(url: str, entry: Entry, path: Path, stop: threading.Event) -> tuple[int, str, str]:
    """Copy what is missing of a file; return its size, SHA-256 and ETag. Raise Incomplete if others have failed."""
    sha256, etag = hashlib.sha256(), Etag(filesystem.part_size(url, entry))
    with path.open("r+b" if path.exists() else "w+b") as file:
        start = _arrived(path)
        file.truncate(start)
        while piece := file.read(PIECE):
            sha256.update(piece)
            etag.update(piece)
        for piece in filesystem.stream(url, entry.state, start):
            if stop.is_set():
                raise Incomplete(f"{url} was not copied to its end. Run it again; finished work is kept")
            file.write(piece)
            filesystem.synced(file)
            sha256.update(piece)
            etag.update(piece)
        return file.tell(), sha256.hexdigest(), etag.value


def _arrived(path: Path) -> int:
    """Return how many bytes of a file are surely on the disk: each piece is synced before the next is requested."""
    return max(0, path.stat().st_size - 1) // PIECE * PIECE


class _Cached(NamedTuple):
    """A copy in the cache, complete or not."""

    path: Path
    bytes: int
    used: float
    """Time of the last use, in seconds since 1970."""


def _make_space(own: Path, size: int, limit: int) -> None:
    """Remove other copies until ``own``, which will have ``size`` bytes, fits on the disk and all fit in ``limit``."""
    if size > limit:
        shutil.rmtree(own)
        raise BadInput(
            f"the weights have {size / GIB:.1f} GiB; expected at most {limit / GIB:.0f}, the limit of all copies. "
            "Raise kubernetes.weightsGib in the cluster file, or --weights-gib"
        )
    arrived = sum(one.stat().st_size for one in own.iterdir() if one.name != EXPECTED)

    def fits(total: int) -> bool:
        return total <= limit and shutil.disk_usage(own).free >= size - arrived

    with claimed(str(cached_weights() / "claims"), this_process(), WAIT):
        for path in cached_weights().iterdir():
            if REMOVED.fullmatch(path.name):
                shutil.rmtree(path)  # a process was killed meanwhile: others have ended, because they had the claim
        cached = [_cached(path) for path in cached_weights().iterdir() if FOLDER.fullmatch(path.name) and path != own]
        total = size + sum(one.bytes for one in cached)
        for one in sorted(cached, key=lambda one: one.used):
            if fits(total):
                break
            total -= one.bytes if _remove(one.path) else 0
    if not fits(total):
        if not arrived:
            shutil.rmtree(own)
        raise StoreError(
            f"no space for {size / GIB:.1f} GiB in {cached_weights()} (limit {limit / GIB:.0f} GiB): the other copies "
            "are in use. Run it again later, or raise kubernetes.weightsGib in the cluster file (--weights-gib)"
        )


def _cached(path: Path) -> _Cached:
    if copy := _complete(path):
        return _Cached(path, copy.bytes, last_use(path))
    expected = path / EXPECTED
    return _Cached(path, int(expected.read_text()) if expected.is_file() else 0, path.stat().st_mtime)


def _remove(path: Path) -> bool:
    """Remove a copy; return False if it is in use."""
    key = path.with_name(path.name.removesuffix(".partial"))
    if path != key:
        if holder(f"{key}.claims", process_alive):
            return False
        shutil.rmtree(path)
        return True
    with (path / ABOUT).open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("%s cannot be locked (%s)", path, error)
        if in_use(path):
            return False
        going = path.with_name(f"{path.name}.{uuid4().hex}.removed")
        path.rename(going)
        if in_use(path):  # somebody found it complete just before
            going.rename(path)
            return False
        log.info("removing %s from the cache", path)
        shutil.rmtree(going)
        shutil.rmtree(f"{path}.uses", ignore_errors=True)
    return True


def cached_copy(copy: Copy, root: str | None = None) -> str:
    """Return the folder of a copy below ``root`` (default: HF_HOME of this machine)."""
    return filesystem.join(root or str(cache_root()), copy.path)
