"""The parts of the judge's requests that need no client: where the key comes from, and the price."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from halos_eval.config.judge import load_judge
from halos_eval.errors import JudgeRefused
from halos_eval.stages.judge.client import Completions, Endpoint

KEY = "sk-never-to-be-shown"


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    endpoint = Endpoint.from_environment()
    assert endpoint.key.get_secret_value() == KEY
    assert endpoint.base_url == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert Endpoint.from_environment().base_url == "http://127.0.0.1:9/v1"


def test_the_key_is_never_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint = Endpoint.from_environment()
    assert KEY not in f"{endpoint!r} {endpoint} {endpoint.model_dump()} {endpoint.model_dump_json()}"


@pytest.mark.parametrize("key", ["", None])
def test_no_key(monkeypatch, key):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(JudgeRefused, match="OPENAI_API_KEY is not set"):
        Endpoint.from_environment()


def completions(judge):
    made = Completions(None, judge, None, 1)
    made.prompt_tokens, made.completion_tokens = 1_000_000, 500_000
    return made


def test_the_price_is_that_of_the_list():
    assert completions(load_judge("gpt-4.1-mini")).price_usd() == pytest.approx(0.40 + 1.60 / 2)
    assert completions(load_judge("demo")).price_usd() == 0


def test_no_list_no_price():
    judge = load_judge("gpt-4.1").model_copy(update={"price_per_million_tokens": None})
    assert completions(judge).price_usd() is None


def test_tokens_that_nobody_counted_are_neither_none_at_all_nor_free(monkeypatch):
    made = completions(load_judge("gpt-4.1-mini"))
    assert made.tokens() == (1_000_000, 500_000)
    answers = [{"text": "m", "error": None, "usage": usage} for usage in ([10, 1], None)]

    async def answered(requests):
        return answers

    monkeypatch.setattr(made, "_complete", answered)
    monkeypatch.setitem(sys.modules, "alpaca_eval", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "alpaca_eval.utils", SimpleNamespace(prompt_to_chatml=lambda prompt: [prompt]))
    prices = made(["one", "two"])["price_per_example"]
    assert prices == [pytest.approx((10 * 0.40 + 1.60) / 1e6), None]
    assert made.tokens() == (None, None)
    assert made.price_usd() is None
