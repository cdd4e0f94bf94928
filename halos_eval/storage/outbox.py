"""Carry the results of tasks without a network from the outbox into the store.

Those tasks have executed code that a model wrote, and it may have written into their folder of the outbox as well: what
is not a record with the files that it names stays there, and no link is followed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Failure, Record, read_record, write_model

log = logging.getLogger(__name__)

# What a harness stage saves. Any other file, a record above all, would be taken for somebody else's result.
FILE = re.compile(r"results\.json|samples/[A-Za-z0-9][A-Za-z0-9_.-]*\.jsonl\.gz")
LARGEST = 2**30
"""Bytes of a file that are read into memory; samples of a task are some megabytes."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY


class _SuspectError(Exception):
    """A folder of the outbox is not what a harness stage leaves."""


def collect(outbox: Path, root: str) -> None:
    """Carry every finished folder ``runs/CHECKPOINT/harness.TASK/FINGERPRINT`` of ``outbox`` to ``root``.

    A folder is removed once its record is in the store; of one that is not finished, the reason is carried. Raises
    StoreError.
    """
    for folder in sorted(outbox.glob("runs/*/harness.*/*")):
        try:
            _carry(outbox, folder.relative_to(outbox), root)
        except (_SuspectError, BadInput, OSError, ValidationError, RecursionError) as error:
            log.warning("left in the outbox: %s: %s", folder, " ".join(str(error).split()))


def _carry(outbox: Path, folder: Path, root: str) -> None:
    target = filesystem.join(root, *folder.parts)
    record_url = filesystem.join(target, layout.RECORD)
    try:
        record = Record.model_validate_json(_read(outbox, folder / layout.RECORD))
    except FileNotFoundError:
        # No record: it has failed, or is still at it, or was killed.
        if (outbox / folder / layout.FAILURE).exists():
            failure = Failure.model_validate_json(_read(outbox, folder / layout.FAILURE))
            write_model(layout.failure_beside(record_url), failure)
        return
    if layout.stage_folder(root, record.checkpoint.name, record.stage, record.task, record.fingerprint) != target:
        raise _SuspectError("its record is another task's")
    if strange := [name for name in record.files if not FILE.fullmatch(name)]:
        raise _SuspectError(f"no task saves {strange}")
    if read_record(record_url) != record:  # else it is carried already, and was not removed to the end
        contents = {name: _read(outbox, folder / name) for name in record.files}
        if any(digest_bytes(data) != record.files[name] for name, data in contents.items()):
            raise _SuspectError("its record names other files than are there")
        for name, data in contents.items():
            filesystem.write_bytes(filesystem.join(target, name), data)
        write_model(record_url, record)
        filesystem.delete(layout.failure_beside(record_url))
    _remove(outbox / folder)
    log.info("carried into the store: %s", record_url)


def _remove(folder: Path) -> None:
    """Remove ``folder``. One that the kubelet has made for a pod stays, empty: the folder above it is the kubelet's."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    with suppress(PermissionError):
        folder.rmdir()


def _read(outbox: Path, path: Path) -> bytes:
    """The content of a plain file below ``outbox``; no part of ``path`` may be a link."""
    *folders, last = path.parts
    handles = [os.open(outbox, FOLDER)]
    try:
        for part in folders:
            handles.append(os.open(part, FOLDER | os.O_NOFOLLOW, dir_fd=handles[-1]))
        # O_NONBLOCK: opening a pipe would wait for a writer for ever
        handles.append(os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handles[-1]))
        status = os.fstat(handles[-1])
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise _SuspectError(f"{last} is no plain file of at most {LARGEST} bytes")
        with open(handles[-1], "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        for handle in handles:
            os.close(handle)
