"""The cost of a judge's answers."""

from __future__ import annotations

import pytest

from halos_eval.config.judge import load_judge
from halos_eval.config.prices import Tokens
from halos_eval.stages.judge.money import Bill, tokens_of

GPT = load_judge("gpt-4.1")
UNPRICED = GPT.model_copy(update={"completions_kwargs": {"model_name": "mine"}})


def usage(prompt, completion, total=None, cached=None, reasoning=None):
    """What an endpoint counted."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion if total is None else total,
        "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
        "completion_tokens_details": None if reasoning is None else {"reasoning_tokens": reasoning},
    }


def answer(*tokens, **keys):
    return {"text": "m", "error": None, "usage": list(tokens) or None, **keys}


def bill(judge, *answers):
    made = Bill(judge)
    for one in answers:
        made.add(one)
    return made


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        (None, None),
        (usage(100, 10), Tokens(100, 10)),
        (usage(100, 10, cached=64), Tokens(100, 10, 64)),
        (usage(100, 10, reasoning=8), Tokens(100, 10, 0, 8)),  # a part of the completion
        (usage(100, 10, total=118, reasoning=8), Tokens(100, 18, 0, 8)),  # on top of it
        (usage(100, 10, cached="many", reasoning=-1), Tokens(100, 10)),
        (usage(100, 10, cached=1000), Tokens(100, 10, 100)),
        ({"prompt_tokens": 1, "completion_tokens": 2}, Tokens(1, 2)),
    ],
)
def test_what_an_endpoint_counts(counted, expected):
    assert tokens_of(counted) == expected


def test_the_bill_has_every_answer_at_its_price():
    made = bill(GPT, answer(100, 10), answer(1000, 200, 400, 150), answer(100, 10, 0, 0, batch=True))
    assert made.counted() == (1200, 220)
    assert made.total() == pytest.approx(((100 + 600 + 50) * 2 + 400 * 0.5 + (10 + 200 + 5) * 8) / 1e6)
    assert made.details() == {"cached_prompt_tokens": 400, "reasoning_tokens": 150}
    assert made.prices() == GPT.prices


def test_a_bill_without_a_price_or_without_a_count_is_unknown_with_the_reason():
    assert bill(UNPRICED, answer(100, 10)).total() is None
    assert bill(UNPRICED, answer(100, 10)).counted() == (100, 10)
    assert bill(UNPRICED).prices().startswith("unknown: mine is not in the price table")
    uncounted = bill(GPT, answer(100, 10, 50), answer())
    assert (uncounted.total(), uncounted.counted(), uncounted.details()) == (None, (None, None), {})
    assert uncounted.prices() == "unknown: the endpoint counts no tokens"
    assert bill(load_judge("demo"), answer(100, 10)).total() == 0
