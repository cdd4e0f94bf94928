"""The judge's endpoint is down for an hour, on a clock of its own: how each try ends, and what is paid."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import accumulate
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from halos_eval.config.judge import load_judge
from halos_eval.errors import Incomplete
from halos_eval.orchestration.defaults import DEFAULT_ARGS
from halos_eval.stages.judge import client, pace, sending
from halos_eval.stages.judge.answers import Answers
from halos_eval.stages.judge.client import Completions
from halos_eval.stages.judge.connection import NoReply, Reply
from halos_eval.stages.judge.endpoint import Endpoint

HOUR = 3600.0
ENDPOINT = Endpoint(base_url="http://judge/v1", key=SecretStr("k"))
PROMPTS = [[{"role": "user", "content": f"Which one? {number}"}] for number in range(40)]
ANSWER = (
    b'{"model": "j", "choices": [{"finish_reason": "stop", "message": {"content": "m"}}], '
    b'"usage": {"prompt_tokens": 7, "completion_tokens": 1}}'
)


@pytest.fixture
def vendor(monkeypatch):
    """An endpoint that answers 20 requests, and then none until an hour is over. Only sleeping moves its clock."""
    vendor = SimpleNamespace(now=0.0, answered=[])

    async def sleep(seconds):
        # All sleep at the same time, so the clock moves to the end of each sleep, not by its length.
        end = vendor.now + seconds
        await later(0)
        vendor.now = max(vendor.now, end)

    class Connection:
        def __init__(self, endpoint, timeout):
            self.endpoint = endpoint

        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            pass

        async def post(self, body, timeout=None):
            await later(0)
            if len(vendor.answered) >= 20 and vendor.now < HOUR:
                raise NoReply("Connection refused")
            vendor.answered.append(body["messages"][0]["content"])
            return Reply(200, {}, ANSWER)

    later = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(client, "Connection", Connection)
    for module in (pace, sending):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: vendor.now))
    return vendor


def attempt(root):
    """One try of the stage's requests."""
    return Completions(ENDPOINT, load_judge("demo"), Answers(root), concurrency=8, timeout=60.0)(
        PROMPTS, model_name="j"
    )


def delays():
    """Seconds before each retry, as Airflow computes them without its random part."""
    first, factor = DEFAULT_ARGS["retry_delay"], DEFAULT_ARGS["retry_exponential_backoff"]
    most = DEFAULT_ARGS["max_retry_delay"]
    return [min(first * factor**number, most).total_seconds() for number in range(DEFAULT_ARGS["retries"])]


def test_each_try_gives_up_soon_and_all_of_them_within_a_quarter_of_an_hour(vendor, root):
    ends = []
    for delay in (0, *delays()):
        vendor.now += delay
        began = vendor.now
        with pytest.raises(
            Incomplete, match=r"requests in a row failed \(http://judge/v1: cannot be reached: Connection"
        ):
            attempt(root)
        ends.append(vendor.now - began)
    assert all(20 < seconds < 60 for seconds in ends)
    assert timedelta(minutes=7) < timedelta(seconds=list(accumulate(delays()))[-1]) < timedelta(minutes=8)
    assert vendor.now < 15 * 60
    assert len(vendor.answered) == 20


def test_after_the_hour_only_what_was_not_answered_is_paid(vendor, root):
    with pytest.raises(Incomplete):
        attempt(root)
    vendor.now = HOUR
    assert attempt(root)["completions"] == ["m"] * len(PROMPTS)
    assert sorted(vendor.answered) == sorted(message["content"] for (message,) in PROMPTS)


def test_an_endpoint_that_asks_to_wait_for_an_hour_ends_the_try_at_once(vendor, root, monkeypatch):
    async def busy(self, body, timeout=None):
        return Reply(503, {"retry-after": "3600"}, b"{}")

    monkeypatch.setattr(client.Connection, "post", busy)
    with pytest.raises(Incomplete, match="asks to wait 3600 s"):
        attempt(root)
    assert vendor.now == 0
