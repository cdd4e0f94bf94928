"""A judge that is a model: how a suite and a command line give it, and the requests that follow."""

from __future__ import annotations

import pytest

from halos_eval.config.judge import load_judge
from halos_eval.config.served_judge import ServedJudge, judge_choice
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput

TEMPLATE = "<|im_start|>user\nm or M? {instruction} {output_1} {output_2}<|im_end|>"


@pytest.fixture
def judge(tmp_path):
    """``judge(text)`` returns the judge of a suite that has this text."""

    def judge(text):
        (tmp_path / "own.yaml").write_text(f"alpaca_eval: {{judge: {text}}}")
        return load_suite(str(tmp_path / "own.yaml")).alpaca_eval.judge

    return judge


def test_a_name_stays_a_name(judge):
    assert judge("gpt-4.1") == judge_choice("gpt-4.1") == "gpt-4.1"


def test_a_model_of_the_hub(judge):
    found = judge("{model: lab/judge, revision: v2, profile: large, dtype: bfloat16, max_model_len: 8192}")
    assert found == ServedJudge(model="lab/judge", revision="v2", profile="large", dtype="bfloat16", max_model_len=8192)
    assert found.label == "judge"


def test_what_is_beside_the_suite_gets_an_absolute_path(judge, tmp_path):
    (tmp_path / "models" / "one" / "FINAL").mkdir(parents=True)
    (tmp_path / "own.txt").write_text(TEMPLATE)
    found = judge("{model: models/one/FINAL, prompt_template: own.txt}")
    assert (found.model, found.prompt_template) == (f"{tmp_path}/models/one/FINAL", f"{tmp_path}/own.txt")
    assert found.label == "one"
    assert load_judge(found).template_text == TEMPLATE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{modle: x}", "model: Field required"),
        ("{model: x, dtype: int4}", "dtype: Input should be"),
        ("{model: ''}", "model: String should have at least 1 character"),
        ("{model: x, max_model_len: 0}", "max_model_len: Input should be greater"),
        ("[]", "judge is an empty list"),
    ],
)
def test_a_wrong_value_is_named(judge, text, words):
    with pytest.raises(BadInput) as caught:
        judge(text)
    assert words in str(caught.value)


def test_it_survives_the_command_line():
    found = ServedJudge(model="/models/é {x}", revision="$(KEY)", max_model_len=9)
    assert judge_choice(str(found)) == found


@pytest.mark.parametrize("text", ["{", '{"profile": "large"}', '{"model": 1}'])
def test_json_of_something_else_is_rejected(text):
    with pytest.raises(BadInput, match=r"Give \{model: \.\.\., profile: \.\.\.\}, a name or a file"):
        judge_choice(text)


def test_its_answers_can_only_be_the_two_letters():
    judge = load_judge(ServedJudge(model="lab/judge"))
    options = judge.completions_kwargs
    assert options["extra_body"] == {"structured_outputs": {"choice": ["m", "M"]}}
    assert (options["max_tokens"], options["logprobs"], options["top_logprobs"]) == (1, True, 5)
    assert judge.fn_completion_parser == "logprob_parser"
    assert judge.price_per_million_tokens.input == judge.price_per_million_tokens.output == 0
    # Where the model is says nothing about its preferences: the digest of its weights is in the identity.
    assert judge.inputs() == load_judge(ServedJudge(model="/elsewhere")).inputs()


def test_an_unknown_template_is_rejected():
    with pytest.raises(BadInput, match=r"prompt_template none\.txt does not exist"):
        load_judge(ServedJudge(model="lab/judge", prompt_template="none.txt"))
