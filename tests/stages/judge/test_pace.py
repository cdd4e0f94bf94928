"""The pace of requests, on a clock of its own."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from halos_eval.stages.judge import pace
from halos_eval.stages.judge.pace import Pace, seconds_to_wait


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves."""
    at = SimpleNamespace(now=1000.0)

    async def sleep(seconds):
        at.now += seconds

    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: at.now))
    monkeypatch.setattr(pace.asyncio, "sleep", sleep)
    return at


def requests_for(clock, answers, limit, window, retry_after):
    """How many requests it takes at an endpoint that allows ``limit`` in any ``window`` seconds, and how long.

    ``retry_after`` gives its header, from the seconds until it allows the next request.
    """
    accepted, sent_in_all, began = [], 0, clock.now

    async def ask_all():
        nonlocal sent_in_all
        granted = Pace(64)
        while len(accepted) < answers:
            # Requests without a pause between them are sent before the first of them is answered.
            at_once = 1 if granted._pause else min(granted._limit, answers - len(accepted))
            sent = [await granted.turn() for _ in range(at_once)]
            for moment in sent:
                sent_in_all += 1
                recent = [earlier for earlier in accepted if moment - window < earlier]
                if len(recent) >= limit:
                    granted.throttled(moment, retry_after(recent[-limit] + window - moment))
                else:
                    accepted.append(moment)
                    granted.answered()

    asyncio.run(ask_all())
    return sent_in_all, clock.now - began


RETRY_AFTER = {"true": lambda seconds: seconds, "a second": lambda _: 1, "none": lambda _: None}


@pytest.mark.parametrize("retry_after", RETRY_AFTER.values(), ids=RETRY_AFTER)
def test_a_small_limit_takes_about_as_many_requests_as_answers(clock, retry_after):
    requests, seconds = requests_for(clock, 400, 15, 60, retry_after)
    assert requests <= 1.2 * 400
    assert seconds <= 1.1 * 400 / 15 * 60


def test_without_a_limit_nothing_waits(clock):
    assert requests_for(clock, 805, 10**6, 1, RETRY_AFTER["none"]) == (805, 0)


def test_more_run_at_a_time_as_answers_come():
    async def run():
        granted = Pace(64)
        before = granted._limit
        for _ in range(100):
            granted.answered()
        return before, granted._limit

    assert asyncio.run(run()) == (pace.START, 64)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "6m0s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
    ],
)
def test_what_an_answers_headers_ask_for(headers, seconds):
    assert seconds_to_wait(headers) == seconds
