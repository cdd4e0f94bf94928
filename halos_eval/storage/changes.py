"""Notes that a checkpoint's row is not up to date in the summaries of its suites. Each is an empty file of its own.

A summary keeps the names of the notes that its rows consider, see `halos_eval.reports.kept_rows`. So a note that two
processes read at the same moment is never lost, whichever of them writes last.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from halos_eval.storage import filesystem, layout
from halos_eval.storage.filesystem import Entry

SETTLED = timedelta(minutes=10)
"""Age at which a considered note is removed: nobody writes a summary any more that was computed before the note."""
MANY = 50
"""Notes are removed when this many have settled, so that most summaries remove none."""


def note(root: str, suite: str, checkpoint: str) -> str:
    """Note that the row of a checkpoint changed in the summary of a suite; return the note's name. Raise StoreError."""
    name = f"{layout.folder_name(checkpoint)}.{uuid.uuid4().hex}"
    filesystem.write_bytes(filesystem.join(layout.changes_url(root, suite), name), b"")
    return name


def note_in_others(root: str, suite: str, checkpoint: str) -> None:
    """Note it in all suites that have plans, but for ``suite``, because suites share records. Raise StoreError."""
    for other, entry in filesystem.entries(layout.plans_url(root)).items():
        if entry.is_folder and other != suite:
            note(root, other, checkpoint)


def checkpoint_of(name: str) -> str:
    """Return the checkpoint that a note is about, as its name is in file names."""
    return name.rpartition(".")[0]


def read(root: str, suite: str) -> dict[str, Entry]:
    """Return the notes of a suite by name. Raise StoreError."""
    listed = filesystem.entries(layout.changes_url(root, suite))
    return {name: entry for name, entry in listed.items() if checkpoint_of(name) and not entry.is_folder}


def settled(notes: dict[str, Entry], considered: Collection[str]) -> list[str]:
    """Return the notes to remove of those that an earlier summary considered; none if they are few."""
    newest = max((entry.modified for entry in notes.values() if entry.modified), default=None)
    old = [
        name
        for name, entry in notes.items()
        if name in considered and entry.modified and newest and newest - entry.modified > SETTLED
    ]
    return old if len(old) >= MANY else []


def remove(root: str, suite: str, names: Collection[str]) -> None:
    """Remove notes. Raise StoreError."""
    urls = [filesystem.join(layout.changes_url(root, suite), name) for name in names]
    with ThreadPoolExecutor() as pool:
        list(pool.map(filesystem.delete_file, urls))
