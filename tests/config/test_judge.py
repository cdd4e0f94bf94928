"""Judges: the shipped ones, alpaca_eval's own files, and what determines a preference."""

from __future__ import annotations

import pytest
import yaml

from halos_eval.config.judge import CLASSIFICATION_PROMPT, load_judge
from halos_eval.errors import BadInput
from halos_eval.shipped import shipped

SHIPPED = sorted(path.stem for path in shipped("judges").glob("*.yaml"))
# The keys of an entry in alpaca_eval's evaluators_configs.
ALPACA_EVAL_ENTRY = {
    "prompt_template": "alpaca_eval_gpt4/alpaca_eval.txt",
    "fn_completions": "openai_completions",
    "completions_kwargs": {"model_name": "gpt-4", "max_tokens": 100, "temperature": 0},
    "completion_parser_kwargs": {"outputs_to_match": {1: r"(?:^|\n) ?Output \(a\)", 2: r"(?:^|\n) ?Output \(b\)"}},
    "fn_completion_parser": "regex_parser",
    "batch_size": 1,
}


@pytest.fixture
def load(tmp_path):
    def load(document):
        path = tmp_path / "judge.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        return load_judge(str(path))

    return load


def entry(**changes):
    return {"mine": {"completions_kwargs": {"model_name": "m"}} | changes}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_judges(name):
    judge = load_judge(name)
    assert judge.name == name
    assert judge.price_per_million_tokens
    assert judge.prompt_template == CLASSIFICATION_PROMPT
    # The preference is a ratio of probabilities: without them every answer would be a plain vote.
    assert judge.completions_kwargs["logprobs"] is True
    assert judge.completion_key == "completions_all"


@pytest.mark.parametrize("name", ["gpt-4.1", "gpt-4.1-mini"])
def test_vendors_models_are_asked_for_by_name(name):
    assert load_judge(name).model == name


def test_alpaca_evals_own_file(load):
    judge = load({"alpaca_eval_gpt4": ALPACA_EVAL_ENTRY})
    assert judge.name == "alpaca_eval_gpt4"
    assert judge.model == "gpt-4"
    assert judge.price_per_million_tokens is None
    back = judge.alpaca_config()
    assert "fn_completions" not in back  # alpaca_eval gets ours
    assert {key: back[key] for key in ALPACA_EVAL_ENTRY.keys() - {"fn_completions"}} == {
        key: value for key, value in ALPACA_EVAL_ENTRY.items() if key != "fn_completions"
    }
    assert set(back) <= ALPACA_EVAL_ENTRY.keys() | {"completion_key"}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (entry(temperature=0), "temperature"),
        (entry(price_per_million_tokens={"input": -1, "output": 1}), "price_per_million_tokens.input"),
        (entry(fn_completions="anthropic_completions"), "fn_completions"),
        (entry(batch_size=5), "batch_size"),
        (entry() | {"second": {}}, "one entry"),
        ({}, "one entry"),
        ([1], "one entry"),
        ({"mine": {"completions_kwargs": {"model": "m"}}}, "no model_name"),
        ({"mine": {}}, "completions_kwargs"),
        ({"mine": None}, "completions_kwargs"),
        ({"mine": [1]}, "completions_kwargs"),
        ("a: [", "not valid YAML"),
        (entry(prompt_template="/none.txt"), "does not exist"),
    ],
)
def test_what_is_wrong_in_a_file(load, document, words):
    with pytest.raises(BadInput) as caught:
        load(document)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["gpt-5", "../judges/demo", "/none.yaml", ""])
def test_an_unknown_judge(name):
    with pytest.raises(BadInput, match=r"available: demo, gpt-4\.1, gpt-4\.1-mini"):
        load_judge(name)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "judge.yaml").write_bytes(b"\xff")
    with pytest.raises(BadInput, match="not valid YAML"):
        load_judge(str(tmp_path / "judge.yaml"))


def test_the_price_and_the_name_determine_no_preference(load):
    free = load(entry())
    priced = load(entry(price_per_million_tokens={"input": 1, "output": 2}))
    renamed = load({"other": entry()["mine"]})
    assert free.inputs() == priced.inputs() == renamed.inputs()


@pytest.mark.parametrize(
    "change",
    [
        {"completions_kwargs": {"model_name": "n"}},
        {"completions_kwargs": {"model_name": "m", "temperature": 0}},
        {"completion_parser_kwargs": {"is_binarize": True}},
        {"completion_key": "completions_all"},
        {"prompt_template": "other/alpaca_eval.txt"},
    ],
)
def test_everything_else_does(load, change):
    assert load(entry(**change)).inputs() != load(entry()).inputs()


def test_a_template_of_ones_own_counts_by_its_text(load, tmp_path):
    (tmp_path / "prompt.txt").write_text("one")
    one = load(entry(prompt_template="prompt.txt"))
    assert one.template_text == "one"
    absolute = load(entry(prompt_template=str(tmp_path / "prompt.txt")))
    assert absolute.template_text == "one"
    (tmp_path / "prompt.txt").write_text("two")
    assert load(entry(prompt_template="prompt.txt")).inputs() != one.inputs()


def test_a_template_of_alpaca_evals_stays_a_name(load):
    assert load(entry()).alpaca_config()["prompt_template"] == CLASSIFICATION_PROMPT
