"""The parts of the judge's requests that need no client: where the key comes from, and what is counted."""

from __future__ import annotations

import pytest

from halos_eval.config.judge import load_judge
from halos_eval.config.judge_client import Client
from halos_eval.errors import JudgeRefused
from halos_eval.stages.judge.client import Completions
from halos_eval.stages.judge.endpoint import Endpoint

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


GATEWAY = Client(
    base_url="https://${JUDGE_USER}@gateway.example/v1",
    default_headers={"X-Key": "Key ${JUDGE_TOKEN}", "X-Team": "evaluation"},
)


def test_a_gateways_credentials_come_from_the_variables_that_the_file_names(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("JUDGE_TOKEN", KEY)
    with pytest.raises(JudgeRefused, match="JUDGE_USER is not set"):
        Endpoint.from_environment(GATEWAY)
    monkeypatch.setenv("JUDGE_USER", "me:word")
    endpoint = Endpoint.from_environment(GATEWAY)
    assert {name: value.get_secret_value() for name, value in endpoint.headers.items()} == {
        "X-Key": f"Key {KEY}",
        "X-Team": "evaluation",
    }
    assert endpoint.key is None  # nothing is sent that nobody has set
    assert endpoint.place == "https://gateway.example/v1"
    assert endpoint.hide(f"401: {KEY} of me:word") == "401: *** of ***"
    assert KEY not in f"{endpoint!r} {endpoint.model_dump_json()}"


def test_azures_key_has_its_own_variable(monkeypatch):
    azure = Client(azure_endpoint="https://mine.openai.azure.com", api_version="2024-10-21")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-vendor")
    monkeypatch.delenv("AZURE_OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeRefused, match="AZURE_OPENAI_API_KEY is not set"):
        Endpoint.from_environment(azure)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    assert Endpoint.from_environment(azure).key.get_secret_value() == KEY


def test_a_file_names_the_endpoint_before_the_environment_does(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert Endpoint.from_environment(Client(base_url="http://127.0.0.1:8/v1")).place == "http://127.0.0.1:8/v1"


def completions(judge):
    return Completions(None, judge, None, 1, 60)


def test_tokens_that_nobody_counted_are_neither_none_at_all_nor_free(monkeypatch):
    made = completions(load_judge("gpt-4.1-mini"))
    assert made.bill.counted() == (0, 0)
    answers = [{"text": "m", "error": None, "usage": usage} for usage in ([10, 1], None)]

    async def answered(requests, options):
        return answers

    monkeypatch.setattr(made, "_complete", answered)
    prices = made([[{"role": "user", "content": text}] for text in ("one", "two")])["price_per_example"]
    assert prices == [pytest.approx((10 * 0.40 + 1.60) / 1e6), None]
    assert made.bill.counted() == (None, None)
    assert made.bill.total() is None
