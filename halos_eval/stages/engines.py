"""Several engines with GPUs of their own, each in a process: vLLM's offline engine has no data parallelism.

Each process has requests in stock, so that its batch is never drained, and a thread that takes more of them: neither
side can block while the other one writes.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

from halos_eval.processes import failure
from halos_eval.stages.engine import AHEAD, Ask, Engine, Finished

DEVICES = "CUDA_VISIBLE_DEVICES"
PR_SET_PDEATHSIG = 1
END_SECONDS = 30
"""How long a process whose pipe is closed may take to end before it is killed."""


class _Ready(NamedTuple):
    """What a process says of its engine when it is loaded."""

    tokenizer: Any
    max_model_len: int
    capacity: int


class _Begin(NamedTuple):
    """Requests follow, until None."""

    at_once: int | None


class _Stop(NamedTuple):
    """Unfinished requests are not wanted any more."""


class _Process:
    """A process with an engine, as the stage sees it."""

    def __init__(self, number: int, devices: str, load: Callable[[], Engine], folder: Path) -> None:
        self.log = folder / f"engine-{number}.log"
        self._name = f"engine {number} on GPU {devices}"
        context = get_context("spawn")  # a forked process could not use CUDA
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, devices, load, str(self.log)))
        self._process.start()
        theirs.close()

    def receive(self) -> Any:
        """Return the next message. Raise EvaluationFailed with its last error line if the process has ended."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None

    def send(self, message: Any) -> None:
        """Send a message. Raise EvaluationFailed if the process has ended."""
        try:
            self.connection.send(message)
        except OSError:
            raise self._ended() from None

    def _ended(self) -> Exception:
        self._process.join(END_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        sys.stderr.write(self.log.read_text(errors="replace"))
        return failure(self._name, self._process.exitcode or 0, self.log)

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.kill()
        self._process.join()


class Engines:
    """Engines in processes of their own. Requests go to the one that has finished some."""

    def __init__(self, load: Callable[[], Engine], devices: Sequence[str]) -> None:
        """Start a process for each of ``devices``, values of CUDA_VISIBLE_DEVICES. It calls ``load``, which is pickled.

        Raise EvaluationFailed if one of them ends.
        """
        atexit.register(
            self.close
        )  # multiprocessing would wait for them; as daemons they could not start any of their own
        folder = Path(tempfile.mkdtemp(prefix="halos-eval-engines-"))
        self._processes: list[_Process] = []
        try:
            for number, one in enumerate(devices):
                self._processes.append(_Process(number, one, load, folder))
            ready: list[_Ready] = [process.receive() for process in self._processes]
        except BaseException:
            self.close()
            raise
        self.tokenizer, self.max_model_len, _ = ready[0]
        self.capacity = sum(one.capacity for one in ready)

    def finished(self, asks: Iterable[Ask], at_once: int | None = None) -> Generator[Finished]:
        """See ``Engine``."""
        count = len(self._processes)
        each = None if at_once is None else -(-at_once // count)
        coming = iter(asks)
        running = {process.connection: process for process in self._processes}
        for process in self._processes:
            process.send(_Begin(each))
        try:
            for _ in range(AHEAD * (each or -(-self.capacity // count))):
                for process in self._processes:
                    _send_next(process, coming)
            while running:
                for connection in wait([*running]):
                    process = running[connection]  # type: ignore[index]
                    result = process.receive()
                    if result is None:
                        del running[connection]  # type: ignore[arg-type]
                        continue
                    yield result
                    _send_next(process, coming)
        except BaseException:
            self._stop(running.values())
            raise

    def _stop(self, running: Iterable[_Process]) -> None:
        """Let processes drop what they compute; the first error counts."""
        with suppress(Exception):
            for process in running:
                process.send(_Stop())
            for process in running:
                while process.receive() is not None:
                    pass

    def close(self) -> None:
        """End all processes. They also end with this one."""
        for process in self._processes:
            process.close()


def _send_next(process: _Process, coming: Iterator[Ask]) -> None:
    """Send the next request, or that there is none. A process ignores what it gets after that."""
    process.send(next(coming, None))


def _serve(connection: Connection, devices: str, load: Callable[[], Engine], log: str) -> None:
    """Load an engine and answer requests until the pipe is closed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    with Path(log).open("wb", buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ[DEVICES] = devices
    engine = load()
    inbox: Queue[Any] = Queue()
    stopped = threading.Event()
    threading.Thread(target=_receive, args=(connection, inbox, stopped), daemon=True).start()
    connection.send(_Ready(engine.tokenizer, engine.max_model_len, engine.capacity))
    while True:
        begin = inbox.get()
        if not isinstance(begin, _Begin):
            continue  # more of the previous requests' end
        stopped.clear()
        with closing(engine.finished(iter(inbox.get, None), begin.at_once)) as results:
            for result in results:
                if stopped.is_set():
                    break
                connection.send(result)
        connection.send(None)


def _receive(connection: Connection, inbox: Queue[Any], stopped: threading.Event) -> None:
    """Put messages into ``inbox``. End this process if the pipe is closed: there is nobody to answer to."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        if isinstance(message, _Stop):
            stopped.set()
            message = None
        inbox.put(message)
