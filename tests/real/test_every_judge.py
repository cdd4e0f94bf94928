"""Every judge that alpaca_eval ships: it judges as its parser says, or its name is rejected with the reason."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.conftest import ROOT
from tests.doubles.judge import worth

pytestmark = pytest.mark.real

# The qualities of an output and of its reference: a win, a loss, a close one, and a tie.
# The last instruction looks like a template.
QUALITIES = {"one": (9, 1), "two": (2, 6), "three": (5, 4), "four": (3, 3), "{output_2} <|im_end|>": (7, 2)}
PAIRS = [
    [instruction, worth("mine", mine), worth("theirs", theirs)] for instruction, (mine, theirs) in QUALITIES.items()
]
# A preference is 1 for the reference and 2 for the model; a weighted judge's is 1 + the model's share of probability.
WEIGHTED = {instruction: 1 + mine / (mine + theirs) for instruction, (mine, theirs) in QUALITIES.items()}
BINARY = {"one": 2, "two": 1, "three": 2, "{output_2} <|im_end|>": 2}
SCORES_TIE = BINARY | {"four": 1.5}

CLIENT = "is not supported; expected fn_completions: openai_completions. Serve the model at"
PLAIN = "is not ChatML, and only chat endpoints are supported"
REJECTED = {
    "Self-taught-llama3.1-70B-dpo": f"vllm_local_completions {CLIENT}",
    "alpaca_eval_vllm_llama3_70b_fn": f"vllm_local_completions {CLIENT}",
    "alpaca_farm": "found 13 (gpt4_1, gpt4_2,",
    "alpaca_farm_greedy_gpt4": "batch_size 5 is not supported; expected 1",
    "bedrock_claude": f"bedrock_anthropic_completions {CLIENT}",
    "bedrock_claude_2": f"bedrock_anthropic_completions {CLIENT}",
    "claude": f"anthropic_completions {CLIENT}",
    "claude_2": f"anthropic_completions {CLIENT}",
    "claude_3_opus_ranking": f"anthropic_completions {CLIENT}",
    "claude_ranking": f"anthropic_completions {CLIENT}",
    "cohere": f"cohere_completions {CLIENT}",
    "gpt35_turbo_instruct": PLAIN,
    "guanaco_33b": f"huggingface_api_completions {CLIENT}",
    "oasst_pythia_12b": f"huggingface_local_completions {CLIENT}",
    "test": PLAIN,
    "text_davinci_003": PLAIN,
}
WEIGHING = {
    "gpt4_turbo_cot_logprob",
    "gpt4_turbo_logprob",
    "weighted_alpaca_eval_cot_gpt4_turbo",
    "weighted_alpaca_eval_gpt-4o-mini-2024-07-18",
    "weighted_alpaca_eval_gpt4_turbo",
    "weighted_alpaca_eval_gpt4_turbo_new",
    "weighted_alpaca_eval_vllm_llama3_70b",
}
SCORING = {"lmsys_gpt4", "improved_lmsys_gpt4"}
CHOOSING = {
    "alpaca_eval_clf_cot_gpt4_turbo",
    "alpaca_eval_clf_gpt4_turbo",
    "alpaca_eval_cot_gpt4_turbo_fn",
    "alpaca_eval_gpt4",
    "alpaca_eval_gpt4_0314",
    "alpaca_eval_gpt4_0613",
    "alpaca_eval_gpt4_fn",
    "alpaca_eval_gpt4_turbo_fn",
    "alpaca_eval_llama3_70b_fn",
    "aviary_gpt4",
    "chatgpt",
    "chatgpt_fn",
    "gpt-3.5-turbo-1106_ranking",
    "gpt4",
    "gpt4_turbo",
    "gpt4_turbo_clf",
    "gpt4_turbo_cot_clf",
    "improved_aviary_gpt4",
    "mistral-large-2402_ranking",
}


@pytest.fixture(scope="module")
def found(environments, tmp_path_factory):
    """What came of each judge."""
    python = environments / "judge" / "bin" / "python"
    words = [python, ROOT / "tests" / "real" / "every_judge.py", json.dumps(PAIRS), tmp_path_factory.mktemp("answers")]
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_index_is_that_of_the_installed_package(found):
    """`make index` writes it again."""
    assert found["index"]


def test_no_judge_is_left_out(found):
    assert found["judges"].keys() == REJECTED.keys() | WEIGHING | SCORING | CHOOSING


def test_what_cannot_be_judged_with_is_rejected_with_the_reason(found):
    reasons = {name: one["rejected"] for name, one in found["judges"].items() if "rejected" in one}
    assert reasons.keys() == REJECTED.keys()
    assert {name for name, words in REJECTED.items() if words not in reasons[name]} == set()


def test_all_others_judge(found):
    judges = found["judges"]
    assert all(judges[name]["asked"] == judges[name]["scored"] == len(PAIRS) for name in WEIGHING | SCORING | CHOOSING)
    assert {name: judges[name]["preferences"] for name in WEIGHING} == dict.fromkeys(WEIGHING, pytest.approx(WEIGHTED))
    assert {name: judges[name]["preferences"] for name in SCORING} == dict.fromkeys(SCORING, SCORES_TIE)
    # These cannot call a tie: the output that is shown first wins it.
    chosen = {name: {key: judges[name]["preferences"][key] for key in BINARY} for name in CHOOSING}
    assert chosen == dict.fromkeys(CHOOSING, BINARY)
    assert {judges[name]["preferences"]["four"] for name in CHOOSING} <= {1, 2}


def test_a_prompt_that_a_gateway_rejects_costs_its_own_pair_only(found):
    limited = found["limited"]
    assert (limited["asked"], limited["scored"]) == (60, 59)
    assert len(limited["refused"]) == 1
    assert limited["counted"]["403"] == 1


def test_a_rate_limit_is_kept(found):
    """Without that, sixteen requests at a time repeat each refused one until its turn comes."""
    counted = found["limited"]["counted"]
    assert counted["answered"] == 59
    assert 1 <= counted["429"] <= 30


def test_the_same_request_of_another_judge_costs_nothing(found):
    """Seven pairs in another template, and seven that were asked before."""
    assert found["limited"]["paid_again"] == 7


@pytest.mark.parametrize(
    ("case", "words"),
    {
        "path": ("JudgeRefused: ", "Error code: 404. Check OPENAI_API_KEY, OPENAI_BASE_URL"),
        "port": ("Incomplete: ", "http://127.0.0.1:9/v1: cannot be reached", "Check that the judge's URL is the root"),
        "answer": ("Incomplete: ", "status 200 with a body that is not a valid answer", "Check that the judge's URL"),
    }.items(),
)
def test_an_endpoint_that_is_none_is_named_with_the_remedy(found, case, words):
    said = found["none"][case]
    assert said.startswith(words[0])
    assert [one for one in words[1:] if one not in said] == [], said


def test_azure_and_gateways_get_their_own_credentials(found):
    path, headers = found["azure"]
    assert path == "/openai/deployments/gpt-3.5-turbo-0301/chat/completions?api-version=2024-10-21"
    assert headers["api-key"] == "sk-azure"
    path, gateways = found["gateway"]
    assert path == "/v1/team/chat/completions"
    assert gateways["x-team-key"] == "sk-gateway"
    assert "authorization" not in headers.keys() | gateways.keys()  # and not the vendor's key
