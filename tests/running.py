"""Which processes run: of a session, or with a variable."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def of_session(session: int) -> set[int]:
    """The processes of a session, which an item cannot leave; those that only wait to be collected do not count."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, number = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                found.add(int(path.name))
    return found


def with_words(*words: str) -> dict[int, str]:
    """The command lines of the processes of this user whose variables or command line have one of these texts."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (path / "cmdline").read_bytes()
            data = line + (path / "environ").read_bytes()
            if any(word.encode() in data for word in words):
                found[int(path.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found
