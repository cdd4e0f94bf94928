"""Rows that are kept in the store beside a suite's table, so that after an evaluation only its own row is computed.

A kept row is used while everything that it was computed from is unchanged. The code, the suite's definition and the
series are one digest for all rows. For each checkpoint there are the states of its plan and of its mark, a file that
is written after each evaluation of the checkpoint in any suite, because suites share records. Both folders are listed
each time, so a row that another process lost, or a plan that was removed, is noticed.

Records that are written without an evaluation (a stage by hand) are noticed by ``summarize`` without a checkpoint.
"""

from __future__ import annotations

import gzip
import logging
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from halos_eval.config.settings import FROZEN
from halos_eval.planning.progress import READERS
from halos_eval.reports.results import Row
from halos_eval.reports.suite_rows import SuiteRows
from halos_eval.storage import filesystem, layout

log = logging.getLogger(__name__)


class KeptRow(BaseModel):
    """One row with the states of the files that it was computed from."""

    model_config = FROZEN

    plan: str
    """State of the plan."""
    mark: str
    """State of the checkpoint's mark; empty if it has none."""
    row: Row
    """The row."""


class KeptRows(BaseModel):
    """All rows of a suite, as they are in the store."""

    model_config = FROZEN

    version: Literal[1]
    """Version of this format."""
    made_with: str
    """Digest of everything that all rows depend on, see `SuiteRows.made_with`."""
    rows: dict[str, KeptRow]
    """Rows by the checkpoint's name in file names, sorted."""
    computed: frozenset[str] = Field(frozenset(), exclude=True)
    """Names of the rows that were computed just now; the others were kept."""

    @property
    def table(self) -> list[Row]:
        """The rows alone."""
        return [one.row for one in self.rows.values()]

    def encoded(self) -> bytes:
        """The file's content; equal rows give equal bytes."""
        return gzip.compress(self.model_dump_json(exclude_defaults=True).encode(), compresslevel=6, mtime=0)


def mark(root: str, checkpoint: str) -> None:
    """Make all kept rows of a checkpoint outdated, because its records changed. Raise StoreError."""
    url = filesystem.join(layout.changes_url(root), layout.folder_name(checkpoint))
    filesystem.write_bytes(url, uuid.uuid4().hex.encode())


def compute(root: str, suite: str, again: str | None = None) -> KeptRows:
    """Return the rows of all plans of a suite. Raise StoreError.

    With ``again``, only the row of this checkpoint is computed, and those that are not kept or outdated. The states are
    listed before the files are read: what changes in between is computed again the next time.
    """
    folder = filesystem.join(layout.plans_url(root), suite)
    with ThreadPoolExecutor() as pool:  # the requests do not depend on each other
        listed = [pool.submit(_states, url) for url in (folder, layout.changes_url(root))]
        reading = pool.submit(read, root, suite) if again else None
        source = SuiteRows(root, suite)
    plans, marks = (one.result() for one in listed)
    plans = {name.removesuffix(".json"): state for name, state in plans.items() if name.endswith(".json")}
    kept = reading.result() if reading else None
    own = layout.folder_name(again) if again else None
    states = {name: (plan, marks.get(name, "")) for name, plan in plans.items()}
    known = kept.rows if kept and kept.made_with == source.made_with else {}
    current = {name: one for name, one in known.items() if states.get(name) == (one.plan, one.mark) and name != own}

    def computed(name: str) -> KeptRow:
        plan, mark = states[name]
        return KeptRow(plan=plan, mark=mark, row=source.read(filesystem.join(folder, f"{name}.json")))

    outdated = sorted(plans.keys() - current.keys())
    with ThreadPoolExecutor(READERS) as pool:
        found = current | dict(zip(outdated, pool.map(computed, outdated), strict=True))
    rows = {name: found[name] for name in sorted(found)}
    return KeptRows(version=1, made_with=source.made_with, rows=rows, computed=frozenset(outdated))


def _states(folder: str) -> dict[str, str]:
    return {name: entry.state for name, entry in filesystem.entries(folder).items()}


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
