"""The folder through which a judge stage and the server of its judge find each other: two processes or two containers.

    judge.lock, server.lock     locked as long as the process runs
    address.json                the server's address, once it answers
    failure.json                why the server ended
    server.log                  what the server printed

The kernel frees a lock when its process ends, even if that was killed. So neither waits for a dead partner.
"""

from __future__ import annotations

import fcntl
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from halos_eval import errors
from halos_eval.config.settings import FROZEN
from halos_eval.errors import HalosEvalError, Incomplete
from halos_eval.processes import end_of

log = logging.getLogger(__name__)

Partner = Literal["judge", "server"]
START_SECONDS = 3600.0
"""How long a judge waits for its server: 140 GB of weights from a slow disk take 25 minutes."""
ABSENT_SECONDS = 900.0
"""How long a server may take to begin: in a pod, its image of 10 GB is pulled after the judge has started."""
POLL_SECONDS = 0.5
SHOWN = 20
"""Lines of a failed server's log that the judge shows."""


class Address(BaseModel):
    """Where the server answers, and what it runs on."""

    model_config = FROZEN

    url: str
    """Root of the API, on loopback."""
    key: str = Field(repr=False)
    """Key that the server requires. Other users of the machine do not have it."""
    vllm: str
    """Installed version of vLLM."""
    gpus: str
    """The GPUs, as in records."""


class _Note(BaseModel):
    """Why the server ended."""

    model_config = FROZEN

    error: str
    """Class of the error."""
    message: str
    """Its message."""


class Exchange:
    """The folder of one judge stage and its server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "server.log"

    @contextmanager
    def present(self, me: Partner) -> Iterator[None]:
        """Show that this process runs, until the context ends or the process is killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            Path(file.name).rename(self._lock(me))  # after the lock, so that the file is never there without it
            yield

    def state(self, partner: Partner) -> Literal["absent", "running", "ended"]:
        """Return whether a partner has not started yet, runs, or has ended."""
        try:
            with self._lock(partner).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return "absent"
        except BlockingIOError:
            return "running"
        return "ended"

    def announce(self, address: Address) -> None:
        """Give the judge the server's address."""
        self._write("address.json", address.model_dump_json())

    def report(self, error: HalosEvalError) -> None:
        """Give the judge the reason why the server ends."""
        self._write("failure.json", _Note(error=type(error).__name__, message=str(error)).model_dump_json())

    def wait(self, seconds: float = START_SECONDS) -> Address:
        """Return the server's address once it answers.

        Raise its error if it ends before, Incomplete if it does not begin or hangs.
        """
        began = time.monotonic()
        while (waited := time.monotonic() - began) < seconds:
            self.check()
            if (path := self.folder / "address.json").is_file():
                return Address.model_validate_json(path.read_bytes())
            if waited > ABSENT_SECONDS and self.state("server") == "absent":
                raise Incomplete(
                    f"the judge's server has not begun after {ABSENT_SECONDS:.0f} s: its container was not started, or "
                    "ended at once. Read the log of the container `server`, and use images of one version"
                )
            time.sleep(POLL_SECONDS)
        raise Incomplete(
            f"the judge's server does not answer after {seconds:.0f} s ({self.state('server')}). Run it again; if it "
            f"persists, read {self.log}"
        )

    def check(self) -> None:
        """Raise the server's error if it has ended, or if it could not start."""
        noted = (self.folder / "failure.json").is_file()
        if (state := self.state("server")) == "running" or (state == "absent" and not noted):
            return
        if self.log.is_file():
            log.error("the end of the server's log:\n%s", "\n".join(end_of(self.log).splitlines()[-SHOWN:]))
        if not noted:
            raise Incomplete("the judge's server was killed (out of memory?). Run it again")
        note = _Note.model_validate_json((self.folder / "failure.json").read_bytes())
        kind = getattr(errors, note.error, HalosEvalError)
        raise kind(note.message) if issubclass(kind, HalosEvalError) else HalosEvalError(note.message)

    def _lock(self, partner: Partner) -> Path:
        return self.folder / f"{partner}.lock"

    def _write(self, name: str, text: str) -> None:
        """Write a file that only this user can read, and that the partner never sees in part."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as file:
            file.write(text)
        Path(file.name).rename(self.folder / name)
