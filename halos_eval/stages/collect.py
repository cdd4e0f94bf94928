"""Carry the results of tasks without a network from the outbox into the store.

Those tasks have executed code that a model wrote, and it may have written into their folder of the outbox as well: what
is not a record with the files that it names stays there, and no link is followed.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from halos_eval import layout, store
from halos_eval.fingerprint import digest_bytes
from halos_eval.record import Failure, Record, write_model

log = logging.getLogger(__name__)


class _SuspectError(Exception):
    """A folder of the outbox is not what a harness stage leaves."""


def collect(outbox: Path, root: str) -> None:
    """Carry every finished folder ``runs/CHECKPOINT/harness.TASK/FINGERPRINT`` of ``outbox`` to ``root``.

    A folder is removed once its record is in the store; of one that is not finished, the reason is carried. Raises
    StoreError.
    """
    for folder in sorted(outbox.glob("runs/*/harness.*/*")):
        try:
            _carry(folder, store.join(root, *folder.relative_to(outbox).parts))
        except (_SuspectError, OSError, ValidationError) as error:
            log.warning("left in the outbox: %s: %s", folder, " ".join(str(error).split()))


def _carry(folder: Path, target: str) -> None:
    record_url = store.join(target, layout.RECORD)
    try:
        record = Record.model_validate_json(_read(folder, layout.RECORD))
    except FileNotFoundError:
        # No record: it has failed, or is still at it, or was killed.
        if (folder / layout.FAILURE).exists():
            write_model(layout.failure_beside(record_url), Failure.model_validate_json(_read(folder, layout.FAILURE)))
        return
    if (f"{record.stage}.{record.task}", record.fingerprint) != (folder.parent.name, folder.name):
        raise _SuspectError("its record is another task's")
    contents = {name: _read(folder, name) for name in record.files}
    if any(digest_bytes(data) != record.files[name] for name, data in contents.items()):
        raise _SuspectError("its record names other files than are there")
    for name, data in contents.items():
        store.write_bytes(store.join(target, name), data)
    write_model(record_url, record)
    store.delete(layout.failure_beside(record_url))
    shutil.rmtree(folder)
    log.info("carried into the store: %s", record_url)


def _read(folder: Path, name: str) -> bytes:
    """The content of a plain file below ``folder``; no part of its name may be a link or lead outside."""
    *folders, last = Path(name).parts
    if not set(name.split("/")).isdisjoint({"", ".", ".."}):
        raise _SuspectError(f"{name!r} is no name of a file in it")
    handles = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)]
    try:
        for part in folders:
            handles.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handles[-1]))
        # O_NONBLOCK: opening a pipe would wait for a writer for ever
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handles[-1])
        with os.fdopen(file, "rb") as opened:
            return opened.read()
    finally:
        for handle in handles:
            os.close(handle)
