"""Which copies of weights in the cache are in use, by the evaluations that need them.

An evaluation holds its turn (a claim in the store) from before its copy is made until its verdict. The folder KEY.uses
beside a copy has one file for each evaluation that needed it, with the URL of that claim.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from time import time

from halos_eval.digests import digest_bytes
from halos_eval.errors import StoreError
from halos_eval.storage import filesystem
from halos_eval.storage.claims import holder

LEASE = timedelta(hours=24)
"""How long a copy counts as used if the store with the turn cannot be read."""


def note_use(copy: Path, turn: str | None) -> None:
    """Note that an evaluation with the ``turn``, or a single command, needs ``copy`` from now on. Raises StoreError."""
    name = digest_bytes(turn.encode())[:32] if turn else "command"
    filesystem.write_bytes(str(_uses(copy) / name), (turn or "").encode())


def in_use(copy: Path) -> bool:
    """Return whether an evaluation that needs ``copy`` has not ended. Commands lock the copy instead."""
    return any(_held(use) for use in _uses(copy).glob("[!.]*"))


def last_use(copy: Path) -> float:
    """Return when ``copy`` was last needed, in seconds since 1970."""
    return max((use.stat().st_mtime for use in _uses(copy).glob("[!.]*")), default=0)


def _uses(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.uses")


def _held(use: Path) -> bool:
    turn = use.read_text(encoding="utf-8")
    try:
        # Whether a run still exists is only known to its Airflow; its lease ends after a day.
        return bool(turn) and holder(turn, lambda owner: True) is not None
    except StoreError:
        return time() - use.stat().st_mtime < LEASE.total_seconds()
