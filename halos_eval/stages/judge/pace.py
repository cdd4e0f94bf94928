"""How fast requests are sent: as many at a time as the endpoint answers, and no faster than its rate limit.

The number at a time grows with each answer. After a 429 nothing is sent until the endpoint's Retry-After is over. From
then on requests are spaced at the rate that was accepted so far, which rises again slowly.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from operator import mul
from typing import cast

START = 24
"""Requests at a time before the first answer."""
FASTER, SLOWER = 0.998, 1.1
"""Factors of the pause between two requests: for each answer, and for a 429 after an answer."""
LONGEST_WAIT = 60.0
"""Seconds without a request after a 429 that names no time."""
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?")
UNITS = (3600, 60, 1, 0.001)
"""Seconds of the parts of ``DURATION``."""


class Pace:
    """Grants slots for requests. All times are in seconds."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Most requests at the same time."""
        self.answered_at = time.monotonic()
        """When the last answer came; at first, the start."""
        self._limit = min(START, most)
        self._running = 0
        self._changed = asyncio.Condition()
        self._turns = asyncio.Lock()
        self._pause = 0.0
        self._next = self._opens = self._began = self._measured = self.answered_at
        self._accepted = self._counted = self._refused = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait until one more request may run, and count it as running."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._running < self._limit)
            self._running += 1
        try:
            yield
        finally:
            async with self._changed:
                self._running -= 1
                self._changed.notify(2)  # this slot, and one more since an answer raises the limit by one

    async def turn(self) -> float:
        """Wait until the next request may be sent; return the time, for ``throttled``."""
        async with self._turns:
            while (wait := max(self._opens, self._next) - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            now = time.monotonic()
            self._next = now + self._pause
            return now

    def answered(self) -> None:
        """Note an answer."""
        self.answered_at = time.monotonic()
        self._limit = min(self._limit + 1, self.most)
        self._pause *= FASTER
        self._accepted += 1
        self._refused = 0

    def throttled(self, sent: float, retry_after: float | None) -> None:
        """Note a 429 for the request of the time ``sent``. Those sent before the last 429 teach nothing new."""
        now = time.monotonic()
        # "Retry-After: 0" is taken once: an endpoint that goes on with it would get requests without a pause.
        named = retry_after is not None and (retry_after > 0 or not self._refused)
        wait = cast(float, retry_after) if named else min(2.0**self._refused, LONGEST_WAIT)
        if sent >= self._began:
            self._refused += 1
            if self._accepted:
                self._measured, self._counted = self._began, self._accepted
                self._pause *= SLOWER
            self._pause = max(self._pause, (now - self._measured + wait) / max(self._counted, 1))
            self._accepted = 0
            self._began = self._next = now + wait
        self._opens = max(self._opens, now + wait)


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """Return how long headers ask to wait: Retry-After, or until the vendor's empty budget is full again."""
    for name, unit in {"retry-after-ms": 1000, "retry-after": 1}.items():
        seconds = _number(headers.get(name, ""))  # None: absent, or a date, which no vendor of models sends
        if seconds is not None:
            return max(seconds / unit, 0)
    waits = [
        _duration(headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0"
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def _duration(text: str) -> float | None:
    """Return the seconds of a duration such as 6m0s, 1.5s or 120ms."""
    found = DURATION.fullmatch(text) if text else None
    if found is None:
        return None
    numbers = [_number(number or "0") for number in found.groups()]
    return None if None in numbers else sum(map(mul, cast(list[float], numbers), UNITS))


def _number(text: str) -> float | None:
    """Return a finite number; None for anything else."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
