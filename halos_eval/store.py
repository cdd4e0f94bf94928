"""Object storage: a few functions over fsspec, the same for a plain path, file:// and s3://.

Pods find their credentials in the standard AWS environment variables. Every write is atomic: a reader sees the old
content or the new, never a part.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from halos_eval.errors import StoreError


def join(url: str, *parts: str) -> str:
    """``url`` with path parts appended."""
    return "/".join([url.rstrip("/"), *parts])


@contextmanager
def _named(url: str, reads_file: bool = False) -> Iterator[None]:
    """Turn what storage raises into a StoreError that names the place and the remedy.

    A file that is not there is the caller's to judge when it is read; elsewhere it is a bucket that does not exist.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (OSError, BotoCoreError, ClientError) as error:
        if reads_file and isinstance(error, FileNotFoundError):
            raise
        raise StoreError(
            f"{url}: {error}. Check the free space, the permissions and, for s3://, AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL; then run it again: what is finished is kept"
        ) from error


def _open(url: str) -> tuple[Any, str]:
    # A cached listing would hide what another pod has just written.
    return fsspec.core.url_to_fs(url, use_listings_cache=False)  # type: ignore[no-any-return]


def read_bytes(url: str) -> bytes:
    """The content of ``url``. Raises FileNotFoundError, StoreError."""
    with _named(url, reads_file=True):
        fs, path = _open(url)
        return bytes(fs.cat_file(path))


def exists(url: str) -> bool:
    """Whether there is a file or folder at ``url``."""
    with _named(url):
        fs, path = _open(url)
        return bool(fs.exists(path))


def write_bytes(url: str, data: bytes) -> None:
    """Write ``data`` to ``url`` atomically and durably, making its folders. Raises StoreError."""
    with _named(url):
        fs, path = _open(url)
        if isinstance(fs, LocalFileSystem):
            _replace(Path(path), data)
        else:
            fs.pipe_file(path, data)


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes 0600, and other pods' users read the store
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def find(url: str, ending: str) -> list[str]:
    """The URLs of all files below ``url`` whose name ends with ``ending``, sorted. Empty where there is no folder."""
    with _named(url):
        fs, path = _open(url)
        return [fs.unstrip_protocol(found) for found in sorted(fs.find(path)) if found.endswith(ending)]


def delete(url: str) -> None:
    """Remove the file or folder at ``url``, if it is there."""
    with _named(url):
        fs, path = _open(url)
        if fs.exists(path):
            fs.rm(path, recursive=True)
