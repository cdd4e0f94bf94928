"""Rows that are kept in the store beside a suite's table, so that after an evaluation only its own row is computed.

Whoever changes what a row is computed from notes it (`halos_eval.storage.changes`): a plan that is saved, an
evaluation that ends, in all suites, because suites share records, and `prune`. The rows are kept with the names of the
notes that they consider. The code, the suite's definition and the series are one digest for all rows.

A change without a note (a stage by hand, a plan that somebody removed) is noticed by ``summarize`` without a
checkpoint.
"""

from __future__ import annotations

import gzip
import logging
import multiprocessing
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from halos_eval.config.settings import FROZEN
from halos_eval.planning.progress import READERS
from halos_eval.reports.results import Row
from halos_eval.reports.suite_rows import SuiteRows
from halos_eval.storage import changes, filesystem, layout

log = logging.getLogger(__name__)

PROCESSES = 4
"""Processes that read records. The S3 client needs about 2 ms of processor time for each request."""
SHARE = 400
"""Rows for which another process is worth its start, which takes seconds of processor time."""


class KeptRows(BaseModel):
    """All rows of a suite, as they are in the store."""

    model_config = FROZEN

    version: Literal[3]
    """Version of this format."""
    made_with: str
    """Digest of everything that all rows depend on, see `SuiteRows.made_with`."""
    considered: tuple[str, ...]
    """Names of the notes that the rows consider, sorted."""
    rows: dict[str, Row]
    """Rows by the checkpoint's name in file names, sorted."""
    computed: frozenset[str] = Field(frozenset(), exclude=True)
    """Names of the rows that were computed just now; the others were kept."""

    def encoded(self) -> bytes:
        """The file's content; equal rows give equal bytes."""
        return gzip.compress(self.model_dump_json(exclude_defaults=True).encode(), compresslevel=1, mtime=0)


def rebuild(root: str, suite: str, processes: int = 1) -> KeptRows:
    """Return the rows of all plans of a suite, from the records alone. Raise StoreError.

    With several ``processes``, the main module of the program is imported in each.
    """
    # Notes are listed first: what changes in between is computed again the next time.
    return _rebuild(SuiteRows(root, suite), changes.read(root, suite), processes)


def _rebuild(source: SuiteRows, notes: Iterable[str], processes: int) -> KeptRows:
    listed = filesystem.entries(filesystem.join(layout.plans_url(source.root), source.suite))
    names = [name.removesuffix(".json") for name in listed if name.endswith(".json")]
    return _kept(source, notes, {}, _computed(source, names, processes))


def with_row(root: str, suite: str, own: str, noted: str) -> tuple[KeptRows, list[str]]:
    """Return the kept rows with the row of the checkpoint ``own``, which the note ``noted`` is about.

    Only this row is computed, and those that other notes are about. Also return the notes to remove once the rows are
    written. Raise StoreError.
    """
    with ThreadPoolExecutor() as pool:  # the requests do not depend on each other
        listing = pool.submit(changes.read, root, suite)
        reading = pool.submit(read, root, suite)
        source = SuiteRows(root, suite)
        computing = pool.submit(source.read, own)
        notes, kept = listing.result(), reading.result()
        if kept is None or kept.made_with != source.made_with:
            return _rebuild(source, [*notes, noted], PROCESSES), []
        considered = frozenset(kept.considered)
        outdated = {changes.checkpoint_of(name) for name in notes.keys() - considered} - {own}
        computed = _computed(source, sorted(outdated), PROCESSES) | {own: computing.result()}
    removable = changes.settled(notes, considered)
    left = {name: entry for name, entry in notes.items() if name not in removable}
    return _kept(source, [*left, noted], kept.rows, computed), removable


def of_others(root: str, suite: str, own: str) -> list[Row]:
    """Return the rows of all checkpoints but ``own`` as they are now. Write nothing. Raise StoreError.

    Kept rows that something has outdated, such as another definition of the suite, are computed again.
    """
    notes, kept, source = changes.read(root, suite), read(root, suite), SuiteRows(root, suite)
    if kept is None or kept.made_with != source.made_with:
        kept = _rebuild(source, notes, PROCESSES)
    else:
        outdated = {changes.checkpoint_of(name) for name in notes.keys() - frozenset(kept.considered)} - {own}
        kept = _kept(source, notes, kept.rows, _computed(source, sorted(outdated), PROCESSES))
    return [row for name, row in kept.rows.items() if name != own]


def _kept(source: SuiteRows, notes: Iterable[str], kept: Mapping[str, Row], new: Mapping[str, Row | None]) -> KeptRows:
    found = {name: row for name, row in sorted({**kept, **new}.items()) if row}
    return KeptRows.model_construct(
        version=3, made_with=source.made_with, considered=tuple(sorted(set(notes))), rows=found, computed=frozenset(new)
    )


def _computed(source: SuiteRows, names: Sequence[str], processes: int) -> dict[str, Row | None]:
    """Return the rows of checkpoints; None for those without a plan. Many are shared between processes."""
    processes = min(processes, len(os.sched_getaffinity(0)), len(names) // SHARE)
    if processes < 2:
        return _read(source, names)
    shares = [names[start::processes] for start in range(processes)]
    # Not forked: the threads of the S3 client would be lost.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(_read, [source] * processes, shares)
        return {name: row for one in found for name, row in one.items()}


def _read(source: SuiteRows, names: Sequence[str]) -> dict[str, Row | None]:
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(source.read, names), strict=True))


def read(root: str, suite: str) -> KeptRows | None:
    """Return the kept rows; None if there are none, or if they are damaged or of another version. Raise StoreError."""
    url = layout.rows_url(root, suite)
    try:
        return KeptRows.model_validate_json(gzip.decompress(filesystem.read_bytes(url)))
    except FileNotFoundError:
        return None
    except (ValidationError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        log.warning("%s is computed again from all records: %s", url, error)
        return None
