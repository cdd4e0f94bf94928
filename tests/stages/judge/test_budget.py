"""The limit on the cost: what is expected, when a run stops, and how it continues."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halos_eval.config.judge import load_judge
from halos_eval.config.prices import Tokens
from halos_eval.errors import BadInput, CostLimit
from halos_eval.stages.judge import client
from halos_eval.stages.judge.answers import Answers
from halos_eval.stages.judge.budget import MARGIN, Budget
from halos_eval.stages.judge.client import Completions
from halos_eval.stages.judge.endpoint import Endpoint

GPT = load_judge("gpt-4.1")  # 2 USD per million input tokens, 8 for output, of which it makes one
REQUESTS = [{"messages": [{"role": "user", "content": f"{number:03d} " + 396 * "x"}]} for number in range(100)]
PRICE = (100 * 2 + 8) / 1e6


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """``judged(max_cost)`` runs a judge on the requests; ``judged.sent`` has what it sent, in all runs."""

    class Sender:
        def __init__(self, connection, pace):
            self.pace = pace

        async def answer(self, request):
            judged.sent.append(request["messages"][0]["content"])
            await asyncio.sleep(0)
            content = {"content": [{"token": "m"}]}
            return {"text": "m", "error": None, "usage": judged.usage(request), "logprobs": content}

    monkeypatch.setattr(client, "Sender", Sender)

    def judged(max_cost=None, judge=GPT, answers="answers"):
        made = Completions(
            Endpoint(base_url="http://nowhere.example", key=None),
            judge,
            Answers(str(tmp_path / answers)),
            16,
            60,
            max_cost=max_cost,
        )
        judged.budget = made.budget
        return asyncio.run(made._complete(REQUESTS, {"model": judge.model, "logprobs": True}))

    judged.sent = []
    judged.usage = lambda request: [100, 1]
    return judged


def test_a_run_stops_before_the_limit_and_continues_without_paying_twice(judged):
    limit = 60.3 * PRICE
    with pytest.raises(CostLimit) as caught:
        judged(limit)
    answered = len(judged.sent)
    assert answered == 60  # the next answer could cost a quarter more than expected
    assert judged.budget.spent == pytest.approx(60 * PRICE)
    assert str(caught.value) == (
        f"stopped at the limit of {limit:g} USD: {60 * PRICE:.4f} USD are spent, and 40 of 100 judgements are left, "
        f"for about {40 * PRICE:.4f} USD. Finished ones are kept. Raise --max-cost to 0.03 (in Airflow, limits.run in "
        "the policy file, which all judges of a run share); then run it again"
    )
    with pytest.raises(CostLimit, match="40 of 100 judgements are left"):
        judged(limit)
    assert len(judged.sent) == 60  # the limit is for all runs of the judgement
    assert len(judged(0.03)) == 100
    assert len(set(judged.sent)) == len(judged.sent) == 100


def test_answers_that_another_run_paid_for_are_not_spent():
    budget = Budget(GPT, 1)
    budget.learn(REQUESTS[0], {"usage": [200, 1], "error": None}, spent=False)
    assert budget.spent == 0
    assert budget.expected(REQUESTS[1]) == pytest.approx((200 * 2 + 8) / 1e6)


def test_nothing_is_sent_for_no_money(judged):
    with pytest.raises(CostLimit, match=r"0\.0000 USD are spent, and 100 of 100"):
        judged(0)
    assert judged.sent == []


def test_the_suggested_limit_is_enough(judged):
    with pytest.raises(CostLimit) as caught:
        judged(10 * PRICE)
    judged(float(str(caught.value).partition("Raise --max-cost to ")[2].split()[0]))


def test_a_free_judge_has_no_end(judged):
    assert len(judged(0, judge=load_judge("demo"))) == 100


def test_a_limit_needs_prices():
    unpriced = GPT.model_copy(update={"completions_kwargs": {"model_name": "mine"}})
    with pytest.raises(BadInput, match=r"--max-cost needs the judge's prices.*Add price_per_million_tokens"):
        Budget(unpriced, 1)
    assert Budget(unpriced).estimate(REQUESTS) == "their cost is unknown"
    assert Budget(unpriced).so_far() == ""


def test_answers_without_a_count_cost_what_was_expected(judged):
    judged.usage = lambda request: None
    with pytest.raises(CostLimit):
        judged(50.3 * PRICE)
    assert len(judged.sent) == 50


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), share=st.floats(0.05, 0.95))
def test_answers_of_different_cost_stay_below_the_limit(seed, share):
    """With the spread that prompts of one template have."""
    drawn = random.Random(seed)
    usages = [[drawn.randint(90, 110), 1] for _ in REQUESTS]
    limit = share * sum(GPT.price.usd(Tokens(*one)) for one in usages)
    budget = Budget(GPT, limit)
    for request, usage in zip(REQUESTS, usages, strict=True):
        reserved = budget.take(request)
        if reserved is None:
            break
        budget.learn(request, {"usage": usage, "error": None})
        asyncio.run(budget.release(reserved))
    assert budget.spent <= limit


def test_the_estimate_is_by_the_length_and_then_by_the_answers():
    budget = Budget(GPT)
    assert budget.estimate(REQUESTS) == f"estimated {100 * PRICE:.2f} USD, by 4 characters for each token"
    assert budget.expected(REQUESTS[0]) == pytest.approx(PRICE)  # max_tokens is 1
    budget.learn(REQUESTS[0], {"usage": [200, 3], "error": None})
    assert budget.expected(REQUESTS[1]) == pytest.approx((200 * 2 + 3 * 8) / 1e6)
    assert budget.expected(REQUESTS[1], batch=True) == pytest.approx((200 * 2 + 3 * 8) / 2e6)
    assert budget.estimate(REQUESTS).endswith("by the answers so far")
    reasons = GPT.model_copy(update={"completions_kwargs": {"model_name": "gpt-5", "max_completion_tokens": 4000}})
    assert Budget(reasons).expected(REQUESTS[0]) == pytest.approx((100 * 1.25 + 4000 * 10) / 1e6)


def test_requests_in_flight_count_at_their_expected_cost():
    budget = Budget(GPT, MARGIN * 2.5 * PRICE)
    assert [budget.take(request) is not None for request in REQUESTS[:3]] == [True, True, False]
    assert budget.stopped
    assert budget.spent == 0
