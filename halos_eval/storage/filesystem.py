"""Files on a disk or in object storage: functions over fsspec for a plain path, file:// and s3://.

Credentials come from the standard AWS environment variables. Every write is atomic: a reader sees the old content or
the new content, never a part.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem

from halos_eval.errors import BadInput, StoreError
from halos_eval.storage.etags import parts_of
from halos_eval.untrusted import moment

PROTOCOLS = {"file", "s3", "memory"}  # memory: for tests

PIECE = 16 << 20  # bytes of an object that are read at once


class Replaced(Exception):
    """An object was replaced while it was read."""


class Entry(NamedTuple):
    """A file or a folder in a folder."""

    size: int
    """Bytes; meaningless for a folder."""
    modified: datetime | None
    """UTC; for a link to a file, the later of both times. None for a folder: object storage has no times of folders."""
    state: str = ""
    """Changes with the content: the ETag in object storage, size and time of a file on a disk."""

    @property
    def is_folder(self) -> bool:
        """Whether the entry is a folder."""
        return self.modified is None


def join(url: str, *parts: str) -> str:
    """Return ``url`` with ``parts`` of a path appended."""
    return "/".join([url.rstrip("/"), *parts])


@contextmanager
def _store_errors(url: str, reads_file: bool = False) -> Iterator[None]:
    """Turn errors of the storage into a StoreError that names the URL and the remedy.

    With ``reads_file``, FileNotFoundError is raised unchanged. Elsewhere it means that the bucket does not exist.
    """
    from aiohttp import ClientError as ConnectionLost
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (OSError, BotoCoreError, ClientError, ConnectionLost) as error:
        if reads_file and isinstance(error, FileNotFoundError):
            raise
        raise StoreError(
            f"{url}: {error}. Check the free space, the permissions and, for s3://, AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL. Then run the command again; finished work is kept"
        ) from error


def _open(url: str) -> tuple[Any, str]:
    # Not fsspec.open, which reads "::" in a URL as a chain of file systems. A cached listing would hide new files of
    # other pods.
    protocol = url.partition("://")[0] if "://" in url else "file"
    if protocol not in PROTOCOLS:
        raise BadInput(
            f"{protocol}:// is not supported ({url}); expected a folder or s3://. Other object storage often has S3's "
            "interface too: use s3:// with its address in AWS_ENDPOINT_URL"
        )
    options = {"config_kwargs": {"user_agent": "halos-eval"}} if protocol == "s3" else {}
    fs = fsspec.filesystem(protocol, use_listings_cache=False, **options)
    if protocol == "s3" and fs.session is None:
        fs.session = _s3_session(fs)
    return fs, fs._strip_protocol(url)


def _s3_session(fs: Any) -> Any:
    """Return a session as s3fs makes it, but with a faster parser of times.

    That of botocore takes 0.1 ms for each entry of a listing, which was a fifth of the time of a table of 2,000 rows.
    """
    from aiobotocore.session import AioSession

    session = AioSession(**fs.kwargs)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    return session


def _time(text: str | float) -> datetime:
    """Return a time of an answer of S3: ISO 8601 in listings, RFC 9110 in headers."""
    from botocore.utils import parse_timestamp

    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError, TypeError, AttributeError):
            return parse(text)  # type: ignore[arg-type]
    return cast(datetime, parse_timestamp(text))


def read_bytes(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Return the content of ``url``, or its bytes [``start``, ``end``). Raises FileNotFoundError, StoreError."""
    with _store_errors(url, reads_file=True):
        fs, path = _open(url)
        # Without this s3fs sends a second request for the size, to read large files in parts.
        options = {} if isinstance(fs, LocalFileSystem) else {"max_concurrency": 1}
        return bytes(fs.cat_file(path, start=start, end=end, **options))


def stream(url: str, state: str, start: int = 0) -> Iterator[bytes]:
    """Yield an object of object storage from byte ``start`` on, in pieces of ``PIECE`` bytes.

    ``state`` is its ``Entry.state``. Raises FileNotFoundError, Replaced if the object is not this version any more,
    StoreError.
    """
    from s3fs.utils import FileExpired  # type: ignore[import-untyped]

    with _store_errors(url, reads_file=True):
        fs, path = _open(url)
        # s3fs sends If-Match with each request.
        with fs.open(path, "rb", block_size=PIECE, cache_type="none") as file:
            if file.details["ETag"].strip('"') != state.strip('"'):  # some servers list it without quotes
                raise Replaced(url)
            file.seek(start)
            try:
                while piece := file.read(PIECE):
                    yield piece
            except FileExpired as error:
                raise Replaced(url) from error


def synced(file: BinaryIO) -> None:
    """Return once what was written to ``file`` is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def part_size(url: str, entry: Entry) -> int | None:
    """Return the bytes of each part but the last of an object that was uploaded in parts. Raises StoreError.

    None if it was not, or if the server does not say, or if the parts differ.
    """
    parts = parts_of(entry.state)
    if parts < 1 or "-" not in entry.state:
        return None
    with _store_errors(url):
        fs, path = _open(url)
        bucket, key, _ = fs.split_path(path)
        # Of an upload that fsspec streamed, each part has another size. Then the last one is not what is left.
        first, last = (
            int(fs.call_s3("head_object", Bucket=bucket, Key=key, PartNumber=number)["ContentLength"])
            for number in (1, parts)
        )
    return first if first and first * (parts - 1) + last == entry.size and last <= first else None


def damaged(url: str, state: str, etag: str) -> bool:
    """Return whether an object has another ETag than what was read of it, ``etag``. Raises StoreError.

    False if its own, ``state``, does not say: with a key of the owner's or of KMS, and if one has parts and the other
    has none, because their size is unknown.
    """
    own = state.strip('"')
    if etag == own or parts_of(own) == 0 or ("-" in own) != ("-" in etag):
        return False
    with _store_errors(url):
        fs, path = _open(url)
        bucket, key, _ = fs.split_path(path)
        head = fs.call_s3("head_object", Bucket=bucket, Key=key)
        return head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head


def read_many(urls: Sequence[str]) -> dict[str, bytes]:
    """Return the content of those ``urls`` that exist; in object storage they are read at once. Raises StoreError."""
    if not urls:
        return {}
    fs, _ = _open(urls[0])
    if not isinstance(fs, AsyncFileSystem) or len({url.partition("://")[0] for url in urls}) > 1:
        found: dict[str, bytes] = {}
        for url in urls:
            with suppress(FileNotFoundError):
                found[url] = read_bytes(url)
        return found
    with _store_errors(urls[0]):
        paths = [fs._strip_protocol(url) for url in urls]
        # One call for all: each call of its own would switch between threads. See read_bytes for the option.
        read = fs.cat_ranges(paths, None, None, on_error="return", max_concurrency=1)
    contents = {}
    for url, one in zip(urls, read, strict=True):
        with suppress(FileNotFoundError), _store_errors(url, reads_file=True):
            if isinstance(one, BaseException):
                raise one
            contents[url] = bytes(one)
    return contents


def exists(url: str) -> bool:
    """Return whether ``url`` is an existing file or folder."""
    with _store_errors(url):
        fs, path = _open(url)
        return bool(fs.exists(path))


def write_bytes(url: str, data: bytes) -> None:
    """Write ``data`` to ``url`` atomically and durably; create its folders. Raises StoreError."""
    with _store_errors(url):
        fs, path = _open(url)
        if isinstance(fs, LocalFileSystem):
            _replace(Path(path), data)
        else:
            fs.pipe_file(path, data)


def create(url: str, data: bytes) -> bool:
    """Write ``data`` to ``url`` if nothing is there, atomically; return whether this call wrote it. Raises StoreError.

    An S3 server that ignores If-None-Match replaces what is there, and the call returns True.
    """
    with _store_errors(url):
        fs, path = _open(url)
        if isinstance(fs, LocalFileSystem):
            for _ in range(10):
                with suppress(FileNotFoundError):  # another process removed the folder meanwhile
                    return _replace(Path(path), data, new=True)
            return _replace(Path(path), data, new=True)
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True


def _replace(path: Path, data: bytes, new: bool = False) -> bool:
    """Write a file atomically. With ``new``, return False if it exists; fsspec's own check is not atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp sets 0600, but pods with other users read the store
        if not new:
            Path(temporary).replace(path)
            return True
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True
    finally:
        Path(temporary).unlink(missing_ok=True)


def find(url: str, ending: str) -> list[str]:
    """Return the sorted URLs of all files below ``url`` that end with ``ending``; none if the folder does not exist."""
    with _store_errors(url):
        fs, path = _open(url)
        return [fs.unstrip_protocol(found) for found in sorted(fs.find(path)) if found.endswith(ending)]


def entries(url: str) -> dict[str, Entry]:
    """Return the entries of the folder ``url`` by name; none if it does not exist. Raises StoreError.

    Links are followed, and broken ones are skipped.
    """
    with _store_errors(url):
        fs, path = _open(url)
        if isinstance(fs, LocalFileSystem):
            return _scan(path)
        try:
            listed = _listed(fs, path)
        except FileNotFoundError:
            return {}
        children = {one["name"].removeprefix(f"{path.rstrip('/')}/"): one for one in listed}
        # Skip the empty object that some tools write for the folder itself. The listing of a file is the file.
        return {name: _entry(fs, one) for name, one in children.items() if name and "/" not in name}


def _listed(fs: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(fs, AsyncFileSystem):
        return list(fs.ls(path, detail=True))
    # s3fs's `ls` sends a second request if a folder is empty.
    return list(sync(fs.loop, fs._lsdir, path))


def _entry(fs: Any, listed: dict[str, Any]) -> Entry:
    folder = listed["type"] == "directory"
    modified = None if folder else listed.get("LastModified") or fs.modified(listed["name"])
    return Entry(int(listed["size"]), modified, listed.get("ETag") or f"{listed['size']}-{modified}")


def _scan(folder: str) -> dict[str, Entry]:
    try:
        with os.scandir(folder) as scanned:
            children = {child.name: _local_entry(child) for child in scanned}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: entry for name, entry in children.items() if entry}


def _local_entry(child: os.DirEntry[str]) -> Entry | None:
    try:
        status = child.stat()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP}:
            return None
        raise
    newest = max(status.st_mtime, child.stat(follow_symlinks=False).st_mtime)
    modified = None if child.is_dir() else moment(newest)
    return Entry(status.st_size, modified, f"{status.st_size}-{status.st_mtime_ns}")


def tree(url: str) -> dict[str, Entry]:
    """Return all files below the folder ``url`` by their path in it; none if it does not exist. Raises StoreError.

    No link is followed: a link below ``url`` is listed as a file, and nothing is listed if ``url`` is one itself.
    """
    with _store_errors(url):
        fs, path = _open(url)
        if isinstance(fs, LocalFileSystem):
            return {} if Path(path).is_symlink() else _walk(path)
        listed = fs.find(path, detail=True)
        return {name.removeprefix(f"{path.rstrip('/')}/"): _entry(fs, one) for name, one in listed.items()}


def _walk(folder: str) -> dict[str, Entry]:
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    found = {}
    for parent, folders, files in os.walk(folder, onerror=fail):
        for path in [Path(parent, name) for name in (*folders, *files)]:
            with suppress(FileNotFoundError):  # removed meanwhile
                status = path.lstat()
                if not stat.S_ISDIR(status.st_mode):
                    modified = moment(status.st_mtime)
                    found[path.relative_to(folder).as_posix()] = Entry(status.st_size, modified)
    return found


def inside(root: str, url: str) -> bool:
    """Return whether no folder between ``root`` and ``url`` is a link, nor ``url`` itself."""
    parts = url.removeprefix(f"{root.rstrip('/')}/").split("/")
    return not any(linked(join(root, *parts[:end])) for end in range(1, len(parts) + 1))


def linked(url: str) -> datetime | None:
    """Return the UTC time at which the link ``url`` was created. None if it is no link, as in object storage."""
    with _store_errors(url):
        fs, path = _open(url)
        link = isinstance(fs, LocalFileSystem) and Path(path).is_symlink()
        return moment(Path(path).lstat().st_mtime) if link else None


def delete(url: str) -> None:
    """Remove the file, folder or link ``url`` if it exists. Links are not followed."""
    with _store_errors(url):
        fs, path = _open(url)
        if fs.lexists(path):
            fs.rm(path, recursive=True)


def delete_file(url: str) -> None:
    """Remove the file ``url`` if it exists, with one request to object storage. Raises StoreError."""
    with _store_errors(url), suppress(FileNotFoundError):
        fs, path = _open(url)
        fs.rm_file(path)


def remove_empty(url: str) -> None:
    """Remove the folder ``url`` if it is empty. Object storage has no empty folders."""
    with _store_errors(url):
        fs, path = _open(url)
        if isinstance(fs, LocalFileSystem):
            try:
                Path(path).rmdir()
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                    raise
