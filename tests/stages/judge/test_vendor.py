"""The vendor's replies about batches, as the client gives them, and its errors."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from halos_eval.errors import Incomplete, JudgeRefused
from halos_eval.stages.judge import vendor
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.vendor import NAME, State, Vendor

KEY = "sk-never-to-be-shown"
NOW = datetime.now(UTC)


class Refused(Exception):
    def __init__(self, status_code, code=None):
        super().__init__(f"no,\n {KEY}")
        self.status_code, self.code = status_code, code


class Lost(Exception):
    pass


@pytest.fixture
def client(monkeypatch):
    """The parts of OpenAI's client that a test sets."""
    monkeypatch.setitem(sys.modules, "openai", SimpleNamespace(APIStatusError=Refused, APIConnectionError=Lost))
    monkeypatch.setattr(vendor, "read_body", lambda body: {"text": body["said"]})
    return SimpleNamespace(batches=SimpleNamespace(), files=SimpleNamespace())


def answered(reply):
    async def call(*_, **options):
        if isinstance(reply, Exception):
            raise reply
        return reply

    return call


def account(client):
    return Vendor(Endpoint(base_url="https://vendor.example/v1", key=KEY), client)


def batch(status="in_progress", **fields):
    usual = dict.fromkeys(("errors", "request_counts", "input_file_id", "output_file_id", "error_file_id"))
    return SimpleNamespace(status=status, **usual | fields)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (batch("validating", input_file_id="i"), State("validating", uploaded="i")),
        (batch(request_counts=SimpleNamespace(completed=3, failed=1)), State("in_progress", 4)),
        (batch("completed", output_file_id="o", error_file_id="e"), State("completed", 0, ("o", "e"))),
        (batch("expired", error_file_id="e"), State("expired", 0, ("e",))),
        (
            batch("failed", errors=SimpleNamespace(data=2 * [SimpleNamespace(code="c", message=f"bad\n{KEY}")])),
            State("failed", 0, (), "bad ***", frozenset({"c"})),
        ),
        (batch("failed", errors=SimpleNamespace(data=None)), State("failed")),
    ],
)
def test_states(client, found, state):
    client.batches.retrieve = answered(found)
    assert asyncio.run(account(client).state("b")) == state


def test_a_batch_is_found_by_its_name_and_the_search_ends_at_its_time(client):
    seen = []

    async def listed(limit):
        for number in range(5):
            seen.append(number)
            created = NOW - timedelta(hours=number)
            yield SimpleNamespace(id=f"b{number}", created_at=created.timestamp(), metadata={NAME: f"n{number}"})

    client.batches.list = listed
    assert asyncio.run(account(client).find("n1", NOW - timedelta(minutes=90))) == "b1"
    seen.clear()
    assert asyncio.run(account(client).find("n4", NOW - timedelta(minutes=30))) is None
    assert seen == [0, 1, 2]  # an hour more than the time, for clocks that differ


def test_lines_that_are_no_answers_are_left_out(client):
    lines = [
        {"custom_id": "a", "response": {"status_code": 200, "body": {"said": "first\u2028line"}}},
        {"custom_id": "a", "response": {"status_code": 200, "body": {"said": "second"}}},
        {"custom_id": "b", "response": {"status_code": 500, "body": {"said": "broken"}}},
        {"custom_id": "c", "response": None, "error": {"code": "batch_expired"}},
        {"custom_id": "d", "response": {"status_code": 200, "body": {}}},
        {"response": {"status_code": 200, "body": {"said": "whose?"}}},
        [],
    ]
    text = "\n".join([*(json.dumps(one, ensure_ascii=False) for one in lines), "{cut"])
    client.files.content = answered(SimpleNamespace(content=text.encode()))
    assert asyncio.run(account(client).answers("f")) == {"a": {"text": "first\u2028line"}}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Lost("gone"), Incomplete),
        (Refused(500), Incomplete),
        (Refused(429), Incomplete),
        (Refused(429, "insufficient_quota"), JudgeRefused),
        (Refused(400), JudgeRefused),
        (Refused(401), JudgeRefused),
        (Refused(404), JudgeRefused),
    ],
)
def test_errors_that_a_retry_can_fix_are_retried(client, error, kind):
    client.batches.retrieve = answered(error)
    with pytest.raises(kind) as caught:
        asyncio.run(account(client).state("b"))
    assert KEY not in str(caught.value)
    assert "https://vendor.example/v1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [Lost("gone"), Refused(403), Refused(404)])
def test_a_file_that_cannot_be_deleted_costs_nothing_else(client, caplog, error):
    client.files.delete = answered(error)
    asyncio.run(account(client).delete("file-1"))
    assert "file file-1 is still at https://vendor.example/v1" in caplog.text
    assert KEY not in caplog.text


def test_each_line_of_a_file_is_a_request_with_its_key():
    request = {"model": "m", "messages": [], "timeout": 3, "extra_body": {"top_k": 1}}
    assert json.loads(vendor.line("key", request)) == {
        "custom_id": "key",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [], "top_k": 1},
    }
