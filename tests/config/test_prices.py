"""Prices: the table that ships, what overrides it, and the cost of an answer."""

from __future__ import annotations

from datetime import date

import pytest
import yaml

from halos_eval.config.alpaca_index import index
from halos_eval.config.judge import load_judge
from halos_eval.config.prices import Price, Tokens, listed_price
from halos_eval.errors import BadInput

MILLION = Tokens(1_000_000, 1_000_000)


@pytest.fixture
def judge(tmp_path):
    """``judge(model, ...)`` is a judge of that model with these keys."""

    def judge(model, **keys):
        entry = {
            "prompt_template": "alpaca_eval_gpt4/alpaca_eval.txt",
            "completions_kwargs": {"model_name": model},
            "completion_parser_kwargs": {"outputs_to_match": {1: "m", 2: "M"}},
        }
        (tmp_path / "judge.yaml").write_text(yaml.safe_dump({"mine": entry | keys}))
        return load_judge(str(tmp_path / "judge.yaml"))

    return judge


@pytest.mark.parametrize(
    ("model", "dollars", "day"),
    [
        ("gpt-4.1", 2 + 8, date(2025, 4, 14)),
        ("gpt-4.1-mini", 0.4 + 1.6, date(2025, 4, 14)),
        ("gpt-4o-mini", 0.15 + 0.6, date(2024, 10, 1)),
        ("gpt-4-1106-preview", 10 + 30, date(2023, 11, 6)),
        ("gpt-5", 1.25 + 10, date(2025, 8, 7)),
    ],
)
def test_list_prices_have_their_day(model, dollars, day):
    price = listed_price(model)
    assert price.usd(MILLION) == pytest.approx(dollars)
    assert price.as_of == day
    assert f"as of {day}" in str(price)


def test_a_snapshot_has_the_price_of_its_model_only_if_the_table_names_it():
    assert listed_price("gpt-4.1-2025-04-14") == listed_price("gpt-4.1")
    assert listed_price("gpt-4.1-2031-01-01") is None
    assert listed_price("gpt-4o-2024-05-13") != listed_price("gpt-4o")
    assert listed_price("gpt") is listed_price("meta-llama/Llama-3.3-70B-Instruct") is None


def test_cached_and_reasoning_tokens_have_their_own_price_and_count_once():
    price = Price(input=2, cached_input=0.5, output=8, reasoning=4)
    assert price.usd(Tokens(1_000_000, 1_000_000, 400_000, 250_000)) == pytest.approx(
        0.6 * 2 + 0.4 * 0.5 + 0.75 * 8 + 0.25 * 4
    )
    plain = Price(input=2, output=8)
    assert plain.usd(Tokens(1_000_000, 1_000_000, 400_000, 250_000)) == pytest.approx(10)
    assert price.usd(MILLION, batch=True) == pytest.approx(price.usd(MILLION) / 2)
    assert Price(input=2, output=8, batch=0.75).usd(MILLION, batch=True) == pytest.approx(7.5)


def test_the_file_overrides_the_table(judge):
    own = judge("gpt-4.1", price_per_million_tokens={"input": 1, "output": 2, "as_of": date(2026, 1, 2)})
    assert own.price.usd(MILLION) == pytest.approx(3)
    assert own.prices == "input 1, output 2 USD per million tokens, as of 2026-01-02 (of the judge file)"
    assert judge("gpt-4.1").prices == (
        "input 2, cached input 0.5, output 8 USD per million tokens, as of 2025-04-14 (of halos-eval)"
    )


def test_an_unknown_price_is_missing_with_the_remedy(judge):
    assert judge("mine-70b").price is None
    assert judge("mine-70b").prices.startswith("unknown: mine-70b is not in the price table. Add price_per_million")


def test_the_vendors_models_of_alpaca_evals_judges_have_prices():
    judges = []
    for name in index().judges:
        try:
            judges.append(load_judge(name))
        except BadInput:
            continue  # a client that is not supported
    vendors = {judge.model for judge in judges if judge.model.startswith("gpt-")}
    assert len(vendors) >= 5
    assert {model for model in vendors if listed_price(model) is None} <= {"gpt-3.5-turbo-0301"}
