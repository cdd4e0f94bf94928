"""Score each document in a confined process of its own, so that an answer can falsify no score but its own.

lm_eval scores a task whose answers are code by executing them in the method ``process_results``, one document after
the other. Here a confined child does that. It has a process group that nothing in it can leave, and that is killed
before the next document begins. Its result is JSON: nothing that it sends is executed here.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from halos_eval.stages.harness.sandbox import Access, Limits, confine, die_with_parent

log = logging.getLogger(__name__)

Work = Callable[[], Any]
PR_SET_CHILD_SUBREAPER = 36
LARGEST = 1 << 24
"""Maximum bytes of a document's result, which has some numbers."""
NONE = struct.pack("=i", 0)
"""What stands for no process group."""
INTERVAL = 0.1
"""Seconds between two looks at what an item uses."""


class _StoppedError(Exception):
    """An item used more than it may, or ended without a result."""


class _Used(NamedTuple):
    """What a process uses."""

    group: int
    """Its process group."""
    threads: int
    """Number of its threads."""
    memory: int
    """Bytes of memory that are not a file's."""


class Items:
    """Runs items one after the other, each in the same folder, which is empty for each."""

    def __init__(self, folder: Path, readable: Iterable[str], limits: Limits | None = None) -> None:
        """``folder`` is all that an item can write to; it keeps the folders that are in it now, without files."""
        self.folder, self.limits = folder, limits or Limits()
        self.access = Access(tuple(readable), (str(folder),))
        self._cleaned = 0
        self.stopped = 0
        """Number of items that had to be stopped, or that ended without a result."""
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self._folders = [path for path in sorted(folder.rglob("*")) if path.is_dir()]
        # All that an item leaves becomes a child of this process, which can wait for its end.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._guard, self._announce = _guard()

    def close(self) -> None:
        """End what would end the items' processes."""
        os.close(self._announce)
        os.waitpid(self._guard, 0)

    def wrap(self, task: Any) -> None:
        """Let an lm_eval task score each document in an item."""
        process = task.process_results

        def scored(doc: Any, results: Any, *rest: Any, **options: Any) -> Any:
            try:
                return self.run(lambda: process(doc, results, *rest, **options))
            except _StoppedError as error:
                self.stopped += 1
                log.warning("%s: scored as an empty answer, because its item %s", task.config.task, error)
                return self.run(lambda: process(doc, _emptied(results), *rest, **options))

        task.process_results = scored

    def run(self, work: Work) -> Any:
        """Return the result of ``work`` in a confined process. Raise its error as RuntimeError."""
        self._clean()
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        scorer = os.getpid()
        child = os.fork()
        if not child:
            os.close(reading)
            self._child(work, writing, scorer)
        os.close(writing)
        with suppress(PermissionError, ProcessLookupError):  # it has done so itself, or has ended
            os.setpgid(child, child)
        try:
            data = self._watch(child, reading)
        finally:
            os.close(reading)
            _end(child)
            os.write(self._announce, NONE)
        try:
            status, value = json.loads(data)
        except (ValueError, TypeError, RecursionError) as error:
            raise _StoppedError("ended without a result") from error
        if status == "error":
            raise RuntimeError(str(value))
        return value

    def _clean(self) -> None:
        """Replace the folder by an empty one. Contents that cannot be removed (too deep folders) are moved away."""
        self._cleaned += 1
        left = self.folder.with_name(f"{self.folder.name}-{self._cleaned}")
        self.folder.rename(left)
        with suppress(RecursionError):
            shutil.rmtree(left, ignore_errors=True)
        for folder in (self.folder, *self._folders):
            folder.mkdir()

    def _child(self, work: Work, writing: int, scorer: int) -> None:
        """Run in the child, and end it."""
        try:
            os.setpgid(0, 0)
            die_with_parent()
            if os.getppid() != scorer:  # it has been killed in between
                os._exit(1)
            os.write(self._announce, struct.pack("=i", os.getpid()))
            os.close(self._announce)
            _hide_files(writing)
            # Metrics such as code_eval execute the answer in a fork, which must not be able to send the result itself.
            held = [writing]  # closed once: a fork of the fork may have another file of that number
            os.register_at_fork(after_in_child=lambda: os.close(held.pop()) if held else None)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            temporary = str(self.folder / "tmp")
            os.chdir(temporary)
            os.environ["TMPDIR"] = tempfile.tempdir = temporary
            confine(self.access, self.limits, {1, scorer, _parent_of(scorer), self._guard})
            try:
                message = json.dumps(["result", work()], default=_plain)
            except Exception as error:  # noqa: BLE001 (a task may raise anything; the parent raises it again)
                message = json.dumps(["error", f"{type(error).__name__}: {error}"])
            with os.fdopen(writing, "w") as file:
                file.write(message)
        except BaseException as error:  # noqa: BLE001 (the child must not go on as a second scorer)
            os.write(2, f"an item ended without a result: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(0)

    def _watch(self, child: int, reading: int) -> bytes:
        """Return what the child sends until it ends. Raise _StoppedError if it exceeds a limit."""
        data = b""
        started = time.monotonic()
        # Some libraries keep memory from forks, so the child can begin with less than this process has.
        own = min(_used(os.getpid()).memory, _used(child).memory)
        ended = os.pidfd_open(child)
        try:
            while True:
                ready, _, _ = select.select([reading, ended], [], [], INTERVAL)
                if reading in ready and (piece := os.read(reading, 1 << 16)):
                    data += piece
                elif ended in ready or reading in ready:  # the end of the child, or of its only message
                    return data
                if len(data) > LARGEST:
                    raise _StoppedError(f"sent more than {LARGEST} bytes")
                if not ready:
                    self._check(child, own, time.monotonic() - started)
        finally:
            os.close(ended)

    def _check(self, group: int, own: int, seconds: float) -> None:
        threads, memory = _of_group(group, own)
        if threads > self.limits.threads:
            raise _StoppedError(f"started {threads} threads; expected at most {self.limits.threads}")
        if memory > self.limits.memory:
            raise _StoppedError(f"used {memory} bytes; expected at most {self.limits.memory}")
        if seconds > self.limits.seconds:
            raise _StoppedError(f"took more than {self.limits.seconds:g} s")


def _guard() -> tuple[int, int]:
    """Start a process that kills the item's processes if this one is killed. Return it, and a pipe that it reads.

    The kernel kills an item's first process with its parent, but not what that has started. Each item writes the number
    of its group to the pipe, and 0 follows when it has ended. The end of the pipe is the end of this process.
    """
    reading, writing = os.pipe()
    guard = os.fork()
    if not guard:
        try:
            os.setpgid(0, 0)  # not killed with the group of the scorer
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.dup2(reading, 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # no pipe of another process stays open because of this one
            group = NONE
            while data := os.read(3, len(NONE)):
                group = data
            if group != NONE:
                os.killpg(struct.unpack("=i", group)[0], signal.SIGKILL)
        finally:
            os._exit(0)
    os.close(reading)
    return guard, writing


def _hide_files(kept: int) -> None:
    """Put /dev/null in place of all that is open but the standard streams and ``kept``: an answer could write to it.

    They are not closed, because libraries keep their numbers.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for handle in [int(one.name) for one in Path("/proc/self/fd").iterdir()]:
        if handle not in {0, 1, 2, kept, null}:
            os.dup2(null, handle, inheritable=False)


def _end(group: int) -> None:
    """Kill all processes of an item at once, and wait for their end."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def _of_group(group: int, own: int) -> tuple[int, int]:
    """Return threads and bytes of a process group; not counting the ``own`` bytes that each process was forked with."""
    threads = memory = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (found := _used(int(entry.name))).group == group:
            threads += found.threads
            memory += max(0, found.memory - own)
    return threads, memory


def _used(process: int) -> _Used:
    """Return what a process uses; zeros once it has ended."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in {"NSpgid", "Threads", "RssAnon", "RssShmem"}:
                found[name] = int(value.split()[0])
    memory = (found.get("RssAnon", 0) + found.get("RssShmem", 0)) << 10
    return _Used(found.get("NSpgid", 0), found.get("Threads", 0), memory)


def _parent_of(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return 1


def _plain(value: Any) -> Any:
    """Return a number of NumPy as Python's own."""
    return value.item() if hasattr(value, "item") else str(value)


def _emptied(results: Any) -> Any:
    """Return ``results`` with an empty text in place of each answer."""
    if isinstance(results, str):
        return ""
    if isinstance(results, list | tuple):
        return type(results)(map(_emptied, results))
    return results
