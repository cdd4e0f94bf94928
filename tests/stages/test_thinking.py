"""Thinking is separated from the answer, whatever the tags are, and an opening without an end is never an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.config.chat import ChatSettings
from halos_eval.errors import BadInput, EvaluationFailed
from halos_eval.stages.judge.outputs import cut_outputs
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.sampled import check_not_all_cut, counts, row_of, thinking_removed, turns_of
from halos_eval.stages.thinking import Answer, Thinking, has_undeclared, template_arguments
from tests.doubles.tokenizer import CHATML, Tokenizer

USUAL = Thinking("default")
QWEN = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
R1 = CHATML + "<think>\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>b", Answer("b", "<think>a</think>")),
        ("<think>a</think>\n\nb\n", Answer("b\n", "<think>a</think>")),
        ("<think>a</think>\n\n    return 1", Answer("    return 1", "<think>a</think>")),
        ("<think></think>b", Answer("b", "<think></think>")),
        ("a</think>b", Answer("b", "a</think>")),
        ("<think>a</think>b<think>c</think>d", Answer("bd", "<think>a</think><think>c</think>")),
        ("Well. <think>a</think>b", Answer("Well. b", "<think>a</think>")),
        ("\n\nb", Answer("\n\nb")),
        ("", Answer("")),
        ("<think>a", Answer("", "<think>a", unended=True)),
        ("<think>a</think>b<think>c", Answer("", "<think>a</think><think>c", unended=True)),
    ],
)
def test_separated(text, expected):
    assert USUAL.separated("2 + 2 =", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a</think>b", Answer("b", "a</think>")), ("a, b", Answer("", "a, b", unended=True))],
)
def test_the_prompt_may_begin_the_thinking(text, expected):
    assert USUAL.separated("2 + 2 =\n<think>\n", text) == expected
    assert USUAL.separated("2 + 2 =<think>\n\n</think>\n\n", "b") == Answer("b")


@pytest.mark.parametrize(("start", "end"), [("[T]", "[/T]"), ("◁think▷", "◁/think▷"), ("(", ")"), ("\\n", "+*")])
def test_other_tags(start, end):
    assert Thinking("on", start, end).separated("", f"{start}a{end}b") == Answer("b", f"{start}a{end}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a Q b</think>5 Q 6", Answer("5 ", "<think>a Q b</think>")),
        ("a Q b</think>5 Q 6", Answer("5 ", "a Q b</think>")),
        ("<think>a</think>5 Q <think>b", Answer("5 ", "<think>a</think>")),
        ("5 Q 6", Answer("5 ")),
        ("<think>a</think>\n5", Answer("5", "<think>a</think>")),
    ],
)
def test_a_stop_string_ends_the_answer_only(text, expected):
    assert USUAL.separated("", text, stops=["Q", "\n"]) == expected


def test_an_answer_that_uses_its_budget_up_is_cut_unless_a_stop_string_ended_it():
    assert USUAL.separated("", "<think>a", cut=True) == Answer("", "<think>a", cut=True)
    assert USUAL.separated("", "<think>a</think>5 and", cut=True).cut
    assert not USUAL.separated("", "<think>a</think>5 Q 6", cut=True, stops=["Q"]).cut


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", "Q"]), max_size=8).map("".join), st.booleans())
def test_no_answer_has_thinking_or_a_stop_string(text, is_open):
    found = USUAL.separated("<think>" if is_open else "", text, stops=["Q"])
    assert "<think>" not in found.text
    assert "Q" not in found.text
    if is_open and "</think>" not in text:
        assert found.text == ""


def test_undeclared_thinking_is_noticed():
    assert has_undeclared("2 + 2 =", "<reasoning>a</reasoning>4")
    assert has_undeclared("2 + 2 =\n<think>\n", "a")
    assert not has_undeclared("2 + 2 =", "I think 4 > 3")


@pytest.mark.parametrize(
    ("template", "settings", "expected"),
    [
        (QWEN, {}, {}),
        (QWEN, {"thinking": "on"}, {"enable_thinking": True}),
        (QWEN, {"thinking": "off"}, {"enable_thinking": False}),
        (QWEN, {"thinking": "default"}, {}),
        (QWEN, {"chat_template_args": {"enable_thinking": False}}, {"enable_thinking": False}),
        ("{{ messages }}{% if thinking %}T{% endif %}", {"thinking": "on"}, {"thinking": True}),
        ("{% generation %}{{ enable_thinking }}{% endgeneration %}", {"thinking": "on"}, {"enable_thinking": True}),
    ],
)
def test_arguments_of_the_template(template, settings, expected):
    assert template_arguments(ChatSettings(**settings), template, "m") == expected


@pytest.mark.parametrize(
    ("template", "settings", "words"),
    [
        (R1, {"thinking": "off"}, "cannot turn thinking off.*Set thinking: default"),
        (CHATML, {"thinking": "on"}, "cannot turn thinking on"),
        (QWEN, {"chat_template_args": {"efort": "low"}}, "has efort, which .* does not use; it takes enable_thinking"),
    ],
)
def test_arguments_that_the_template_does_not_know(template, settings, words):
    with pytest.raises(BadInput, match=words):
        template_arguments(ChatSettings(**settings), template, "m")


def prompting(template=QWEN, stop=("###",), **settings):
    tokenizer = Tokenizer("</s>", "[T]", "[/T]", eos="</s>", chat_template=template)
    return Prompting.chat(tokenizer, None, stop, "m", ChatSettings(**settings))


def test_only_the_end_of_the_turn_is_sent_to_a_model_that_may_think():
    assert prompting().stops.all == ["###", "<|im_end|>"]
    way = prompting(thinking="off")
    assert way.stops.all == ["<|im_end|>"]
    assert way.after_thinking == ("###",)
    assert way.render(turns_of({"instruction": "Hello"}, None)).endswith("<think>\n\n</think>\n\n")
    assert way.described()["prompt:chat_template_args"] == '{"enable_thinking": false}'


def sampled(text, finish="stop", **settings):
    way = prompting(template=CHATML, **settings)
    return thinking_removed({"samples": [{"text": text, "finish": finish}]}, "Hello", way)


TAGS = {"think_start_token": "[T]", "think_end_token": "[/T]"}


def test_a_sampled_answer():
    answer = sampled("[T]a ### b[/T]\n\nFour.</s> ### more", **TAGS)
    (sample,) = answer["samples"]
    assert (sample["text"], sample["thinking"], sample["cut"]) == ("Four.", "[T]a ### b[/T]", False)
    assert row_of(sample) == {"thinking": "[T]a ### b[/T]"}
    assert row_of(sampled("Four.")["samples"][0]) == {}


def test_counts_of_sampled_answers():
    answers = [sampled("[T]a", "length", **TAGS), sampled("[T]b", **TAGS), sampled("c", **TAGS)]
    assert counts(answers, "on") == {"cut_at_max_tokens": 1, "unended_thinking": 1, "without_thinking": 1}
    plain = [sampled("<think>a</think>b"), sampled("b", "length")]
    assert counts(plain, None) == {"cut_at_max_tokens": 1, "undeclared_thinking": 1}
    with pytest.raises(EvaluationFailed, match=r"all 1 answers were cut at 8 tokens.*Raise max_tokens"):
        check_not_all_cut(answers[:1], 8)
    check_not_all_cut(answers, 8)


def test_an_output_that_was_cut_is_no_loss():
    rows = [
        {"instruction": str(number), "output": "", **({"cut": True} if number == 3 else {})} for number in range(20)
    ]
    assert cut_outputs(rows) == {"3"}
    with pytest.raises(EvaluationFailed, match=r"1 of 19 outputs were cut at max_tokens; expected at most 5%"):
        cut_outputs(rows[:19])
