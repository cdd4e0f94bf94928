"""The journal: finished items, saved while a stage runs, from which a killed stage resumes.

It is a folder of small JSON-lines files, because an object store cannot append. Each file is written atomically, so a
kill loses at most the items of the last few seconds.
"""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any
from uuid import uuid4

from halos_eval.storage import filesystem


class Journal:
    """Finished items by key, in the folder ``url``. A context manager that saves pending items at its end."""

    def __init__(self, url: str, seconds: float = 2.0) -> None:
        self.url = url
        self.seconds = seconds
        """A call of ``add`` saves the pending items if the last save is this old."""
        self._pending: list[tuple[str, Any]] = []
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any]:
        """Return all saved items. For a key that was saved twice, the first value is kept."""
        items: dict[str, Any] = {}
        for part in filesystem.find(self.url, ".jsonl"):
            for line in filesystem.read_bytes(part).decode().splitlines():
                key, value = json.loads(line)
                items.setdefault(key, value)
        return items

    def add(self, key: str, value: Any) -> None:
        """Add one finished item. It is saved now, or by the first later call after ``seconds``."""
        self._pending.append((key, value))
        if time.monotonic() - self._saved_at >= self.seconds:
            self.save()

    def save(self) -> None:
        """Write the pending items as one new file."""
        if self._pending:
            # ASCII only: texts may contain line separators (U+2028) or characters that UTF-8 cannot encode.
            text = "".join(json.dumps(item) + "\n" for item in self._pending)
            # Names sort by time, so that ``load`` finds the earliest value first.
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
