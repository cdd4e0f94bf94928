"""Claims: only one process at a time does a piece of work, also across machines and Airflow installations.

A claim is a numbered file in a folder of the store. It names its owner and the end of its lease, which the owner
extends. When a lease has expired, or its owner is known to have ended, the next process creates the file with the next
number; a file of that name can only be created once. The owner of an earlier number notices that, and gives up.

A store that does not support conditional writes (some S3 servers ignore If-None-Match) gives no guarantee. There the
content is read again after the write, so that of two processes at the same moment usually only one goes on.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.errors import HalosEvalError, Incomplete, StoreError
from halos_eval.storage import filesystem
from halos_eval.storage.records import read_model, write_model

log = logging.getLogger(__name__)

LEASE = timedelta(minutes=5)
"""How long the claim of a process that was killed on another machine delays the next one."""
WAIT = LEASE + timedelta(minutes=1)
"""How long to wait for a process that changes the same document; one that was killed holds its claim for a lease."""
NAME = re.compile(r"(\d{6})\.json")
FILE = re.compile(r"claims/\d{6}\.json$")
"""End of the URL of a claim that a stage has beside its results."""


class Claim(BaseModel):
    """A claim as it is in the store."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    owner: str
    """The run or the process that does the work."""
    until: datetime
    """UTC time at which the lease expires."""
    released: bool = False
    """Whether the owner has ended."""


class Busy(Incomplete):
    """Another process does the same work. Retried: by then it is done, or its claim has expired."""


Alive = Callable[[str], bool | None]
"""Function that returns whether an owner is at work; None if that is unknown here, so that the lease decides."""


def take(folder: str, owner: str, alive: Alive, lease: timedelta = LEASE) -> str:
    """Claim the work that ``folder`` stands for; return the URL of the claim. The same owner takes its own claim again.

    Raise Busy if another owner holds it, and StoreError.
    """
    while True:
        number, held = _newest(folder)
        if number and held is None:
            continue  # its owner ended after the folder was listed
        if held and held.owner == owner:
            write_model(_url(folder, number), _claim(owner, lease))
            return _url(folder, number)
        if held and _holds(held, alive, datetime.now(UTC)):
            raise Busy(f"{held.owner} does this work, until at least {held.until:%H:%M} UTC. Run it again later")
        url, claim = _url(folder, number + 1), _claim(owner, lease)
        if filesystem.create(url, (claim.model_dump_json() + "\n").encode()) and read_model(url, Claim) == claim:
            if held:
                log.info("took over from %s", held.owner)
            return url


def extend(url: str, owner: str, lease: timedelta = LEASE) -> None:
    """Extend the lease of the claim ``url``. Raise Busy if another process took over, and StoreError."""
    folder, number = _parts(url)
    newest, held = _newest(folder)
    if held is None or (newest, held.owner) != (number, owner):
        raise Busy(f"{held.owner if held else 'another process'} took this work over. Nothing was saved; run it again")
    write_model(url, held.model_copy(update={"until": datetime.now(UTC) + lease}))


def release(folder: str, owner: str) -> None:
    """Mark the claim of ``owner`` as released, so that the next one need not wait. Raise StoreError."""
    number, held = _newest(folder)
    if held and held.owner == owner:
        write_model(_url(folder, number), held.model_copy(update={"released": True}))


def holder(folder: str, alive: Alive, since: datetime | None = None) -> str | None:
    """Return the owner that may still do the work that ``folder`` stands for; None if there is none. Raise StoreError.

    A lease that expired after ``since`` (default: now) still counts.
    """
    _, held = _newest(folder)
    return held.owner if held and _holds(held, alive, since or datetime.now(UTC)) else None


def holders_below(url: str, alive: Alive) -> set[str]:
    """Return the owners of all claims below the folder ``url`` that may still be at work. Raise StoreError."""
    folders = {found.rpartition("/")[0] for found in filesystem.find(url, ".json") if FILE.search(found)}
    return {owner for folder in folders if (owner := holder(folder, alive))}


def _holds(claim: Claim, alive: Alive, now: datetime) -> bool:
    """Return whether the owner of a claim may still be at work."""
    if claim.released:
        return False
    known = alive(claim.owner)
    return claim.until > now if known is None else known


@contextmanager
def claimed(folder: str, owner: str, wait: timedelta = timedelta(0)) -> Iterator[Callable[[], None]]:
    """Hold the claim while the context is open. Gives a function that raises Busy if another process took over.

    If another process holds the claim, wait for it at most ``wait``, then raise Busy.
    """
    url = _take_within(wait, folder, owner)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(LEASE.total_seconds() / 4):
            with suppress(HalosEvalError):  # the work itself finds out when it confirms the claim
                extend(url, owner)

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield lambda: extend(url, owner)
    finally:
        ended.set()
        keeper.join()
        with suppress(StoreError):
            number = _parts(url)[1]
            # The first of them has no earlier ones to remove. Later ones are another process's.
            numbers = [1] if number == 1 else _numbers(folder)
            if numbers[-1:] == [number]:
                for one in numbers:
                    filesystem.delete_file(_url(folder, one))
                filesystem.remove_empty(folder)


def _take_within(wait: timedelta, folder: str, owner: str) -> str:
    end = datetime.now(UTC) + wait
    while True:
        try:
            return take(folder, owner, process_alive)
        except Busy:
            if datetime.now(UTC) >= end:
                raise
            time.sleep(0.2)


def this_process() -> str:
    """Return the owner that stands for this process."""
    return f"process {os.getpid()} on {platform.node()}"


def process_alive(owner: str) -> bool | None:
    """Return False if the process that ``owner`` names has ended; None if that is unknown, or its number may be new."""
    found = re.fullmatch(r"process (\d+) on (.*)", owner)
    if found and found[2] == platform.node():
        try:
            os.kill(int(found[1]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return None


def _newest(folder: str) -> tuple[int, Claim | None]:
    """Return the highest number and its claim; 0 and None if there is none."""
    number = max(_numbers(folder), default=0)
    return number, read_model(_url(folder, number), Claim) if number else None


def _numbers(folder: str) -> list[int]:
    return sorted(int(found[1]) for name in filesystem.entries(folder) if (found := NAME.fullmatch(name)))


def _claim(owner: str, lease: timedelta) -> Claim:
    return Claim(owner=owner, until=datetime.now(UTC) + lease)


def _url(folder: str, number: int) -> str:
    return filesystem.join(folder, f"{number:06d}.json")


def _parts(url: str) -> tuple[str, int]:
    folder, _, name = url.rpartition("/")
    return folder, int(name.removesuffix(".json"))
