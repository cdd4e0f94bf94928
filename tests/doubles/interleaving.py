"""Runs of the same work at the same time, with the operations of the store in a given order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from halos_eval.errors import HalosEvalError
from halos_eval.storage import claims, filesystem

OPERATIONS = ("read_bytes", "exists", "write_bytes", "create", "entries", "find", "delete")


class _Turns:
    """Lets one thread do one operation at a time: in the given order, then in turns."""

    def __init__(self, order: Iterable[int], threads: int) -> None:
        self.order, self.last = list(order), 0
        self.lock = threading.Condition()
        self.waiting: set[int] = set()
        self.running = set(range(threads))
        self.numbers: dict[int, int] = {}

    def wait(self) -> None:
        me = self.numbers.get(threading.get_ident())
        if me is None:
            return  # a thread that keeps a claim
        with self.lock:
            self.waiting.add(me)
            self.lock.notify_all()
            self.lock.wait_for(lambda: self.waiting >= self.running and self._next() == me)
            if self.order:
                self.order.pop(0)
            self.last = me
            self.waiting.discard(me)

    def _next(self) -> int:
        if self.order and self.order[0] in self.running:
            return self.order[0]
        return min(self.running, key=lambda one: (one <= self.last, one))

    def end(self) -> None:
        with self.lock:
            self.running.discard(self.numbers[threading.get_ident()])
            self.lock.notify_all()


def interleaved(order: Iterable[int], *runs: Callable[[], Any]) -> list[Any]:
    """Call ``runs`` in a thread each. ``order`` has the number of the run that does the next operation of the store.

    Return what they return, or the error that they raise.
    """
    turns, found = _Turns(order, len(runs)), [None] * len(runs)

    def call(number: int) -> None:
        turns.numbers[threading.get_ident()] = number
        try:
            found[number] = runs[number]()
        except HalosEvalError as error:
            found[number] = error
        finally:
            turns.end()

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            real = getattr(filesystem, name)
            patch.setattr(filesystem, name, lambda *words, real=real: (turns.wait(), real(*words))[1])
        patch.setattr(claims.time, "sleep", lambda seconds: None)
        threads = [threading.Thread(target=call, args=(number,)) for number in range(len(runs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found
