"""Move the results of pods without a network from the outbox into the store.

These pods execute model-written code. If it escaped its sandbox, it could write into their folder of the outbox. So
only a valid record and the files that it names are moved, and no link is followed.
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
from halos_eval.storage.result_files import DIGITS, digest_in

log = logging.getLogger(__name__)

# The files of a harness stage. Another file, above all a record, could pass as the result of another stage.
FILE = re.compile(r"results-[0-9a-f]{16}\.json|samples/[A-Za-z0-9][A-Za-z0-9_.()-]*-[0-9a-f]{16}\.jsonl\.gz")
LARGEST = 2**30
"""Maximum bytes of a file, because it is read into memory. The samples of a task are some megabytes."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY


class _SuspectError(Exception):
    """The content of a folder of the outbox was not written by a harness stage."""


def collect(outbox: Path, root: str) -> None:
    """Move every finished folder ``runs/CHECKPOINT/harness.TASK/FINGERPRINT`` of ``outbox`` to ``root``.

    A folder and the answers that were scored are removed once its record is in the store. From a failed one, the
    failure note is copied. Raises StoreError.
    """
    for folder in sorted(outbox.glob("runs/*/harness.*/*")):
        try:
            _move(outbox, folder.relative_to(outbox), root)
        except (_SuspectError, BadInput, OSError, ValidationError, RecursionError) as error:
            log.warning("left in the outbox: %s: %s", folder, " ".join(str(error).split()))


def _move(outbox: Path, folder: Path, root: str) -> None:
    target = filesystem.join(root, *folder.parts)
    record_url = filesystem.join(target, layout.RECORD)
    try:
        record = Record.model_validate_json(_read(outbox, folder / layout.RECORD))
    except FileNotFoundError:
        # No record: the stage failed, is still running, or was killed.
        if (outbox / folder / layout.FAILURE).exists():
            failure = Failure.model_validate_json(_read(outbox, folder / layout.FAILURE))
            write_model(layout.failure_beside(record_url), failure)
        return
    if layout.stage_folder(root, record.checkpoint.name, record.stage, record.task, record.fingerprint) != target:
        raise _SuspectError("its record belongs to another folder")
    if strange := [name for name, digest in record.files.items() if not _is_result(name, digest)]:
        raise _SuspectError(f"its record names unexpected files {strange}")
    if read_record(record_url) != record:  # equal if an earlier call copied it but was killed before removing it
        contents = {name: _read(outbox, folder / name) for name in record.files}
        if any(digest_bytes(data) != record.files[name] for name, data in contents.items()):
            raise _SuspectError("its files do not match the digests in its record")
        for name, data in contents.items():
            filesystem.write_bytes(filesystem.join(target, name), data)
        write_model(record_url, record)
        filesystem.delete(layout.failure_beside(record_url))
    _remove(outbox / folder)
    answers = outbox.joinpath("answers", *folder.parts[1:])
    if answers.is_dir() and not answers.is_symlink():
        _remove(answers)
    log.info("moved into the store: %s", record_url)


def _is_result(name: str, digest: str) -> bool:
    """Return whether a harness stage names a file with this digest so. Another file in the store is never replaced."""
    return bool(FILE.fullmatch(name)) and digest_in(name) == digest[:DIGITS]


def _remove(folder: Path) -> None:
    """Remove ``folder``. If the kubelet created it, it stays but is empty: only the kubelet may write to its parent."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    with suppress(PermissionError):
        folder.rmdir()


def _read(outbox: Path, path: Path) -> bytes:
    """Return the content of a regular file below ``outbox``; no component of ``path`` may be a link."""
    *folders, last = path.parts
    handles = [os.open(outbox, FOLDER)]
    try:
        for part in folders:
            handles.append(os.open(part, FOLDER | os.O_NOFOLLOW, dir_fd=handles[-1]))
        # O_NONBLOCK: otherwise opening a pipe without a writer never returns
        handles.append(os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handles[-1]))
        status = os.fstat(handles[-1])
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise _SuspectError(f"{last} is not a regular file of at most {LARGEST} bytes")
        with open(handles[-1], "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        for handle in handles:
            os.close(handle)
