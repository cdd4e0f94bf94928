"""Results written as they come, so that a stage can be killed at any moment and run again.

A journal is a folder of small JSON-lines files, each written whole (an object store cannot append). Reading it gives
every item that was ever finished; a file is either there or not, so a kill loses at most the last few seconds.
"""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any
from uuid import uuid4

from halos_eval.storage import filesystem


class Journal:
    """Finished items by key, in the folder ``url``. A context manager: what is pending is saved on the way out."""

    def __init__(self, url: str, seconds: float = 2.0) -> None:
        self.url = url
        self.seconds = seconds
        """At most this long lies between an item's end and its being saved."""
        self._pending: list[tuple[str, Any]] = []
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any]:
        """All saved items. A key that was saved twice keeps the first value: what was finished stays as it was."""
        items: dict[str, Any] = {}
        for part in filesystem.find(self.url, ".jsonl"):
            for line in filesystem.read_bytes(part).decode().splitlines():
                key, value = json.loads(line)
                items.setdefault(key, value)
        return items

    def add(self, key: str, value: Any) -> None:
        """Keep one finished item; it is saved now or within ``seconds`` of later calls."""
        self._pending.append((key, value))
        if time.monotonic() - self._saved_at >= self.seconds:
            self.save()

    def save(self) -> None:
        """Write what is pending as one new file."""
        if self._pending:
            # ASCII only: a text may hold characters that split lines (U+2028) or that UTF-8 does not have.
            text = "".join(json.dumps(item) + "\n" for item in self._pending)
            # Sorted by time, so that "the first value" is the earliest.
            filesystem.write_bytes(
                filesystem.join(self.url, f"{time.time_ns():020d}-{uuid4().hex[:8]}.jsonl"), text.encode()
            )
            self._pending.clear()
        self._saved_at = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.save()
