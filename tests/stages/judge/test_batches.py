"""Batches of requests: submitted once under kills at every point, collected, and what becomes of their failures."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from halos_eval.config.judge import load_judge
from halos_eval.errors import Incomplete, JudgeRefused, StoreError, Waiting
from halos_eval.stages.judge import batches
from halos_eval.stages.judge.batches import FEWEST, Batch, Batches
from halos_eval.stages.judge.budget import Budget
from halos_eval.stages.judge.vendor import State
from halos_eval.storage import filesystem
from halos_eval.storage.journal import Journal

GPT = load_judge("gpt-4.1")
REQUESTS = {
    f"{number:064d}": {"messages": [{"role": "user", "content": 400 * "x"}], "model": "gpt-4.1"} for number in range(30)
}
PRICE = (100 * 2 + 8) / 1e6


def answer(key):
    return {"text": f"answer to {key}", "error": None, "usage": [100, 1, 0, 0]}


class Kill(BaseException):
    """SIGKILL."""


class Vendor:
    """A vendor with batches, which end when a test says so."""

    def __init__(self):
        self.batches = {}
        self.names = {}
        self.failing = set()
        self.files = set()
        """Files at the vendor."""
        self.event = lambda name: None

    async def find(self, name, since):
        self.event("before find")
        return self.names.get(name)

    async def submit(self, name, requests):
        self.event("before submit")
        found = f"batch-{len(self.batches) + 1}"
        self.batches[found] = [State("in_progress"), dict(requests)]
        self.names[name] = found
        self.files.add(f"{found}.requests")
        self.event("after submit")
        return found

    async def state(self, batch_id):
        self.event("before state")
        return self.batches[batch_id][0]

    async def answers(self, file_id):
        self.event("before answers")
        assert file_id in self.files
        requests = self.batches[file_id.removesuffix(".answers")][1]
        return {key: answer(key) for key in requests if key not in self.failing} | {"of nobody": answer("x")}

    async def delete(self, file_id):
        self.event("before delete")
        self.files.discard(file_id)
        self.event("after delete")

    def end(self, status="completed", files=True, **state):
        for found, one in self.batches.items():
            if one[0].status == "in_progress":
                answers = (f"{found}.answers",) if files else ()
                self.files.update(answers)
                one[0] = State(status, files=answers, uploaded=f"{found}.requests", **state)


@pytest.fixture
def vendor():
    return Vendor()


@pytest.fixture
def advance(tmp_path, vendor):
    """``advance()`` does what one start of the stage does. It returns the answers so far."""
    url = str(tmp_path / "answers")

    def advance(requests=REQUESTS, limit=None):
        journal = Journal(url)
        done = journal.load()
        budget = advance.budget = Budget(GPT, limit)
        for key, one in done.items():
            budget.learn(requests[key], one)

        def keep(answers):
            for key in answers.keys() - done.keys():
                budget.learn(requests[key], answers[key])
                done[key] = answers[key]
                journal.add(key, answers[key])
            vendor.event("before save")
            journal.save()
            vendor.event("after save")

        todo = {key: request for key, request in requests.items() if key not in done}
        asyncio.run(Batches(f"{url}/batches", vendor, requests, budget, keep).advance(todo))
        return done

    return advance


def test_a_batch_is_submitted_then_awaited_then_collected(advance, vendor):
    for _ in range(3):
        with pytest.raises(Waiting, match=r"30 requests wait in batches of the vendor \(batch-1\)\. Run the same"):
            advance()
    assert len(vendor.batches) == 1
    vendor.end()
    found = advance()
    assert found == {key: answer(key) | {"batch": True} for key in REQUESTS}
    assert advance.budget.spent == pytest.approx(30 * PRICE / 2)
    assert advance() == found
    assert len(vendor.batches) == 1


@pytest.mark.parametrize("at", range(40))
def test_a_kill_at_any_point_neither_submits_twice_nor_loses_an_answer(advance, vendor, monkeypatch, at):
    """Each event is a moment before or after a call to the vendor or a write to the store."""
    left = [at]

    def event(name):
        left[0] -= 1
        if left[0] == -1:
            raise Kill

    def killed(real):
        def write(*arguments):
            event("before write")
            found = real(*arguments)
            event("after write")
            return found

        return write

    vendor.event = event
    monkeypatch.setattr(filesystem, "create", killed(filesystem.create))
    monkeypatch.setattr(batches, "write_model", killed(batches.write_model))
    monkeypatch.setattr(filesystem, "write_bytes", killed(filesystem.write_bytes))
    starts = 0
    while starts < 10:
        starts += 1
        try:
            found = advance()
            break
        except (Kill, Waiting) as end:
            if isinstance(end, Waiting):
                vendor.end()
    assert len(vendor.batches) == 1
    assert found.keys() == REQUESTS.keys()
    assert starts == 2 + (left[0] < 0)
    assert vendor.files == set()  # the lab's prompts and answers do not stay there


def test_failed_requests_are_left_to_be_sent_singly(advance, vendor):
    with pytest.raises(Waiting):
        advance()
    failing = vendor.failing = set(list(REQUESTS)[:25])
    vendor.end()
    assert advance().keys() == REQUESTS.keys() - failing
    assert advance().keys() == REQUESTS.keys() - failing  # a restart before they are sent
    assert len(vendor.batches) == 1


@pytest.mark.parametrize(("status", "files"), [("expired", True), ("cancelled", False), ("expired", False)])
def test_the_rest_of_an_expired_batch_is_sent_singly(advance, vendor, status, files):
    with pytest.raises(Waiting):
        advance()
    vendor.failing = set(list(REQUESTS)[10:])
    vendor.end(status, files)
    assert len(advance()) == (10 if files else 0)
    assert len(vendor.batches) == 1


def test_a_rejected_batch_is_no_answer_and_may_be_submitted_again(advance, vendor):
    with pytest.raises(Waiting):
        advance()
    vendor.end("failed", files=False, problem="the model has no batches", codes=frozenset({"invalid_model"}))
    with pytest.raises(JudgeRefused, match=r"batch-1 was rejected: the model has no batches\. Fix that, or run it wit"):
        advance()
    assert vendor.files == set()
    with pytest.raises(Waiting):
        advance()  # somebody ran it again
    assert len(vendor.batches) == 2
    vendor.end()
    assert len(advance()) == 30


def test_a_full_queue_is_tried_again_for_a_day(advance, vendor, monkeypatch):
    for number in range(1, 4):
        with pytest.raises(Waiting):
            advance()
        assert len(vendor.batches) == number
        vendor.end("failed", files=False, codes=frozenset({"token_limit_exceeded"}))
    monkeypatch.setattr(batches, "PATIENCE", timedelta(0))
    assert advance() == {}
    assert len(vendor.batches) == 3


def test_few_requests_are_not_worth_the_wait(advance, vendor):
    few = dict(list(REQUESTS.items())[: FEWEST - 1])
    assert advance(few) == {}
    assert vendor.batches == {}


def test_the_vendors_limits_split_it(advance, vendor, monkeypatch):
    monkeypatch.setattr(batches, "MOST_REQUESTS", 12)
    with pytest.raises(Waiting, match=r"30 requests .* \(batch-1, batch-2, batch-3\)"):
        advance()
    assert [len(requests) for _, requests in vendor.batches.values()] == [12, 12, 6]
    vendor.end()
    assert len(advance()) == 30


def test_the_size_of_a_file_splits_it(advance, vendor, monkeypatch):
    size = len(batches.line(*next(iter(REQUESTS.items()))))
    monkeypatch.setattr(batches, "MOST_BYTES", 10 * size + 1)
    with pytest.raises(Waiting):
        advance()
    assert [len(requests) for _, requests in vendor.batches.values()] == [10, 10, 10]


def test_the_limit_on_the_cost_holds_for_batches(advance, vendor):
    limit = 12.6 * PRICE  # for 20 requests at half the price and with the margin
    with pytest.raises(Waiting):
        advance(limit=limit)
    [(_, requests)] = vendor.batches.values()
    assert len(requests) == 20
    with pytest.raises(Waiting):
        advance(limit=limit)
    assert len(vendor.batches) == 1  # its requests count as spent
    vendor.end()
    assert len(advance(limit=limit)) == 20
    assert advance.budget.spent == pytest.approx(10 * PRICE)


def test_what_another_start_has_begun_is_not_overwritten(advance, vendor, monkeypatch):
    monkeypatch.setattr(filesystem, "create", lambda url, data: False)
    with pytest.raises(StoreError, match="was written by another run"):
        advance()
    assert vendor.batches == {}


def test_an_error_of_the_vendor_is_retried_without_another_batch(advance, vendor):
    def event(name):
        if name == "after submit":
            vendor.event = lambda name: None
            raise Incomplete("the reply was lost")

    vendor.event = event
    with pytest.raises(Incomplete):
        advance()
    with pytest.raises(Waiting):
        advance()
    assert len(vendor.batches) == 1


@pytest.mark.parametrize(("minutes", "wait"), [(0, 5), (30, 15), (600, 60)])
def test_the_time_between_two_looks_grows_with_the_age(minutes, wait):
    now = datetime.now(UTC)
    one = Batch(name="n", keys=("k",), at=now - timedelta(minutes=minutes), id="b")
    words = str(Batches("", None, {}, None, None)._wait([one]))
    until = datetime.fromisoformat(words.rpartition("again after ")[2])
    assert abs(until - now - timedelta(minutes=wait)) < timedelta(minutes=1)


def test_few_ids_are_named_because_airflow_cuts_long_lines():
    many = [Batch(name="n", keys=("k",), at=datetime.now(UTC), id=100 * "b") for _ in range(9)]
    words = str(Batches("", None, {}, None, None)._wait(many))
    assert words.startswith("9 requests wait")
    assert len(words) < 400
