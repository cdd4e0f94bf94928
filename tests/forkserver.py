"""Runs ``halos-eval`` commands in forks of one process that has imported vLLM and lm_eval, or other libraries.

Importing them takes longer than what most tests do with them. A fork is a process like any other: it has a group of
its own, can be killed, and gets its own variables, folder and output files. Variables that libraries read when they
are imported (HF_HOME, HF_ENDPOINT, ...) are those of the server: a test that changes one starts a process of its own.

    python tests/forkserver.py SOCKET [LIBRARY...]
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

LIBRARIES = (
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "lm_eval.models.vllm_causallms",
    "peft",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
)


class Fork:
    """A command that runs in a fork; like subprocess.Popen, as far as tests use it."""

    def __init__(self, path: Path, argv: list[str], variables: dict[str, str], folder: Path, *files: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(path))
        self._answers = self._connection.makefile("r")
        order = {"argv": argv, "variables": variables, "folder": str(folder), "files": [*map(str, files)]}
        self._connection.sendall((json.dumps(order) + "\n").encode())
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def wait(self) -> int:
        """Return the exit code, negative for a signal, once the process has ended."""
        if self.returncode is None:
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(0):
                    return None
        return self.wait()


def serve(path: str, libraries: Sequence[str]) -> None:
    """Import what takes long, then fork a process for each order, until the process is ended."""
    for name in libraries:
        __import__(name)
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    running[_fork(connection, listener, selector)] = connection
                else:
                    woken.recv(4096)
                    _report_ended(running)


def _fork(connection: socket.socket, listener: socket.socket, selector: selectors.BaseSelector) -> int:
    order = json.loads(connection.makefile("r").readline())
    pid = os.fork()
    if not pid:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        selector.close()
        listener.close()
        connection.close()
        _become(order)
    connection.sendall(f"{pid}\n".encode())
    return pid


def _become(order: dict) -> None:
    """Run the command in this process, which ends with it."""
    os.setsid()
    os.environ.clear()
    os.environ.update(order["variables"])
    os.chdir(order["folder"])
    for number, name in enumerate(order["files"], 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    sys.argv = ["halos-eval", *order["argv"]]
    code = 1
    try:
        from halos_eval.cli.main import main

        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 (shown as Python would show it)
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)  # what was imported has its own ideas of how to end the process it was imported in


def _report_ended(running: dict[int, socket.socket]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            connection = running.pop(pid)
            with suppress(OSError):  # the test has not waited for it
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            connection.close()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:] or LIBRARIES)
