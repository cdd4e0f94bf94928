"""Judges: the shipped ones, alpaca_eval's own files, and what determines a preference."""

from __future__ import annotations

import json

import pytest
import yaml

from halos_eval.config.judge import CLASSIFICATION_PROMPT, load_judge
from halos_eval.errors import BadInput
from halos_eval.shipped import shipped

SHIPPED = sorted(path.stem for path in shipped("judges").glob("*.yaml"))
TEMPLATE = "<|im_start|>user\nCompare for {instruction}: {output_1} or {output_2}\n<|im_end|>\n"
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
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False))
        return load_judge(str(path))

    return load


REGEX = {"outputs_to_match": {1: "m", 2: "M"}}
LOGPROBS = {
    "completions_kwargs": {"model_name": "m", "logprobs": True, "top_logprobs": 5},
    "fn_completion_parser": "logprob_parser",
    "completion_parser_kwargs": {"numerator_token": "m", "denominator_tokens": ["m", "M"]},
    "completion_key": "completions_all",
}


def entry(**changes):
    return {"mine": {"completions_kwargs": {"model_name": "m"}, "completion_parser_kwargs": REGEX} | changes}


def asking(**options):
    """A judge with these ``completions_kwargs``."""
    return entry(completions_kwargs={"model_name": "m", **options})


def calling(**options):
    """A judge with these ``client_kwargs``."""
    return asking(client_kwargs=options)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_judges(name):
    judge = load_judge(name)
    assert judge.name == name
    assert judge.price
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
        (entry(fn_completions="anthropic_completions"), "the client anthropic_completions is not supported"),
        (entry(batch_size=5), "batch_size 5 is not supported"),
        (entry() | {"second": {}}, "one entry"),
        ({}, "one entry"),
        ([1], "one entry"),
        ({"mine": {"completions_kwargs": {"model": "m"}}}, "no model_name"),
        ({"mine": {}}, "completions_kwargs"),
        ({"mine": None}, "completions_kwargs"),
        ({"mine": [1]}, "completions_kwargs"),
        ("a: [", "not valid YAML"),
        (entry(prompt_template="/none.txt"), "does not exist"),
        (entry(prompt_template="text_davinci_003/basic_prompt.txt"), "is not ChatML"),
        (entry(completion_parser_kwargs={}), "regex_parser needs outputs_to_match"),
        (entry(completion_parser_kwargs={**REGEX, "flags": 1}), "regex_parser has no option flags"),
        (entry(fn_completion_parser="my_parser"), "unknown parser my_parser"),
        (entry(**{**LOGPROBS, "completion_key": "completions"}), "logprob_parser expects completions_all"),
        (entry(completion_key="completions_all"), "regex_parser expects completions"),
        (entry(**LOGPROBS | {"completions_kwargs": {"model_name": "m"}}), "add logprobs: true"),
        (entry(processors_to_kwargs={"Mine": {}}), "unknown processor Mine"),
        (asking(requires_chatml=False), "requires_chatml"),
        (asking(tokens_to_favor=["m"]), "Give logit_bias"),
        (asking(openai_api_base="http://127.0.0.1/v1"), "Use client_kwargs: {base_url"),
        (asking(sleep_time=1), "sleep_time"),
        (asking(api_key="sk-1"), "Use client_kwargs"),
        (asking(extra_headers={"X": "1"}), "Use client_kwargs"),
        (calling(api_key="sk-1"), "api_key holds a key; expected ${NAME}"),
        (calling(default_headers={"api-key": "1"}), "api-key holds a secret"),
        (calling(default_headers={"Authorization": "Bearer 1"}), "Authorization holds a secret"),
        (calling(default_query={"sig": "1"}), "sig holds a secret"),
        (calling(base_url="https://me:word@127.0.0.1/v1"), "the address holds a password"),
        (calling(api_key="${AWS_SECRET_ACCESS_KEY}"), "AWS_SECRET_ACCESS_KEY} is not a variable of judges"),
        (calling(azure_endpoint="https://mine.example"), "belong together"),
        (calling(http_client="x"), "http_client"),
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
    elsewhere = load(calling(base_url="http://127.0.0.1:1/v1", timeout=5))
    described = load(entry(pretty_name="Mine", link="https://example.org"))
    assert free.inputs() == priced.inputs() == renamed.inputs() == elsewhere.inputs() == described.inputs()


def test_digests_of_existing_judges_stay():
    """Each of them stands in the fingerprints of records."""
    assert {name: load_judge(name).inputs()["annotator"][:16] for name in SHIPPED} == {
        "demo": "2836fbb6ed2147ee",
        "gpt-4.1": "f706e8292ff59645",
        "gpt-4.1-mini": "69d890b184ceda18",
    }


def test_the_options_of_alpaca_evals_client_are_taken_out_of_the_requests(load):
    judge = load(
        asking(
            requires_chatml=True,
            is_strip=True,
            price_per_token=9e-7,
            num_procs=3,
            n_retries=2,
            max_tokens=None,
            temperature=0,
            client_kwargs={"base_url": "http://127.0.0.1:1/v1", "default_headers": {"X-Key": "${JUDGE_KEY}"}},
        )
    )
    assert judge.completions_kwargs == {"model_name": "m", "temperature": 0}
    client = judge.client
    assert (client.base_url, client.parallel, client.max_retries) == ("http://127.0.0.1:1/v1", 3, 2)
    assert client.variables() == ["JUDGE_KEY"]
    assert judge.price_per_million_tokens.input == judge.price_per_million_tokens.output == pytest.approx(0.9)


def test_a_reasoning_judge_is_asked_with_its_own_options_alone(load):
    options = {"max_completion_tokens": 4000, "reasoning_effort": "low"}
    assert load(asking(**options)).completions_kwargs == {"model_name": "m", **options}


def test_alpaca_evals_parser_is_the_default(load):
    assert load(entry()).inputs() == load(entry(fn_completion_parser="regex_parser")).inputs()


def test_a_name_of_alpaca_evals_is_its_file(load):
    named = load_judge("alpaca_eval_gpt4")
    ranking = {key: value for key, value in ALPACA_EVAL_ENTRY.items() if key != "completion_parser_kwargs"}
    same = load({"alpaca_eval_gpt4": ranking | {"fn_completion_parser": "ranking_parser"}})
    assert named.model == "gpt-4"
    assert named.inputs() == same.inputs()
    assert load_judge("weighted_alpaca_eval_gpt4_turbo").model == "gpt-4-1106-preview"


def test_a_pool_has_no_one_judge():
    with pytest.raises(BadInput, match=r"found 13 .* write a file for the one that you want"):
        load_judge("alpaca_farm")


def test_the_index_has_facts_and_no_texts():
    """Regular expressions and paths have at most a few words; sentences have more."""

    def texts(document):
        if isinstance(document, dict):
            return [text for value in document.values() for text in texts(value)]
        return [text for one in document for text in texts(one)] if isinstance(document, list) else [str(document)]

    everything = texts(json.loads(shipped("alpaca_eval.json").read_bytes()))
    assert [text for text in everything if text.count(" ") > 2] == []
    assert sum(text.startswith("sha256:") for text in everything) > 10


def test_alpaca_eval_joins_a_template_to_the_folder_above(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "prompt.txt").write_text(TEMPLATE)
    (folder / "configs.yaml").write_text(yaml.safe_dump(entry(prompt_template="mine/prompt.txt")))
    assert load_judge(str(folder)).template_text == load_judge(str(folder / "configs.yaml")).template_text == TEMPLATE


def test_a_tie_of_scores_is_a_draw(load):
    entry_of = load(entry(fn_completion_parser="lmsys_parser", completion_parser_kwargs={})).alpaca_config()
    assert entry_of["fn_completion_parser"] == "pipeline_meta_parser"
    assert entry_of["completion_parser_kwargs"]["parsers_to_kwargs"]["replace_parser"] == {"replacer": {0: 1.5}}


@pytest.mark.parametrize(
    "change",
    [
        {"completions_kwargs": {"model_name": "n"}},
        {"completions_kwargs": {"model_name": "m", "temperature": 0}},
        {"completion_parser_kwargs": {"outputs_to_match": {1: "M", 2: "m"}}},
        LOGPROBS,
        {"prompt_template": "alpaca_eval_gpt4/alpaca_eval.txt"},
        {"is_randomize_output_order": False},
        {"processors_to_kwargs": {"ChainOfThoughtProcessor": {}}},
    ],
)
def test_everything_else_does(load, change):
    assert load(entry(**change)).inputs() != load(entry()).inputs()


def test_a_template_of_ones_own_counts_by_its_text(load, tmp_path):
    (tmp_path / "prompt.txt").write_text(TEMPLATE)
    one = load(entry(prompt_template="prompt.txt"))
    assert one.template_text == TEMPLATE
    absolute = load(entry(prompt_template=str(tmp_path / "prompt.txt")))
    assert absolute.template_text == TEMPLATE
    (tmp_path / "prompt.txt").write_text(TEMPLATE.replace("Compare", "Weigh"))
    assert load(entry(prompt_template="prompt.txt")).inputs() != one.inputs()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{instruction} {output_1} {output_2}", "is not ChatML"),
        (
            "<|im_start|>user\n{instruction} {output_1}<|im_end|>",
            "has the placeholders instruction, output_1; expected",
        ),
        ("<|im_start|>user\n{instruction} {output_1} {output_2} {output_2}<|im_end|>", "each once"),
        ("<|im_start|>user\n{instruction} {output_1} {output_2} {input}<|im_end|>", "input"),
    ],
)
def test_a_template_that_alpaca_eval_cannot_fill(load, tmp_path, text, words):
    (tmp_path / "prompt.txt").write_text(text)
    with pytest.raises(BadInput) as caught:
        load(entry(prompt_template="prompt.txt"))
    assert words in str(caught.value)


def test_a_template_of_alpaca_evals_stays_a_name(load):
    assert load(entry()).alpaca_config()["prompt_template"] == CLASSIFICATION_PROMPT
