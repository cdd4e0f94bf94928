"""How prompts are made: BOS once, the template's turns, and where an answer ends."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput
from halos_eval.stages.prompt import Prompting, Stops
from tests.doubles.tokenizer import CHATML, FIRST, Tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
GUIDED = [{"role": "system", "content": "Be brief.\n"}, *HELLO]
WITH_BOS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)
USER_ONLY = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
MERGED = "{{ messages[0].content | trim }} {{ messages[-1].content }}"


def llama(template=None, adds_bos=True):
    return Tokenizer("<s>", "</s>", bos="<s>", eos="</s>", adds_bos=adds_bos, chat_template=template)


def ids_of(prompting, turns=HELLO):
    return prompting.encode(prompting.render(turns))


@pytest.mark.parametrize(
    ("template", "adds_bos", "expected"),
    [(CHATML, True, 1), (CHATML, False, 0), (WITH_BOS, True, 1), (WITH_BOS, False, 1)],
    ids=["tokenizer", "nobody", "both", "template"],
)
def test_bos_is_sent_once_where_the_tokenizer_or_the_template_has_it(template, adds_bos, expected):
    prompting = Prompting(llama(adds_bos=adds_bos), template)
    assert ids_of(prompting).count(FIRST) == expected
    assert prompting.described()["prompt:bos"] == ("<s>" if expected else "none")


@given(text=st.text(max_size=9), adds_bos=st.booleans(), written=st.integers(0, 3))
def test_plain_text_is_sent_as_it_is_with_at_most_one_more_bos(text, adds_bos, written):
    tokenizer = llama(adds_bos=adds_bos)
    text = "<s>" * written + text
    ids = Prompting(tokenizer).encode(text)
    assert tokenizer.decode(ids) == ("<s>" + text if adds_bos and not text.startswith("<s>") else text)


def test_without_bos_the_end_token_is_lm_evals_mark_of_a_text_that_is_complete():
    tokenizer = Tokenizer("<|end|>", eos="<|end|>")
    assert Prompting(tokenizer).encode("<|end|>a") == [FIRST, ord("a")]
    assert Prompting(tokenizer).described()["prompt:bos"] == "none"


def test_the_tokenizers_own_template_unless_another_is_named(tmp_path):
    own = Prompting.chat(llama("{{ messages[0].content }}"), None, (), "m")
    assert own.render(HELLO) == "Hello"
    (tmp_path / "a.jinja").write_text("U{{ messages[0].content }}")
    assert Prompting.chat(llama("T"), str(tmp_path / "a.jinja"), (), "m").render(HELLO) == "UHello"
    several = llama({"tool_use": "T", "default": "D{{ messages[0].content }}"})
    assert Prompting.chat(several, None, (), "m").render(HELLO) == "DHello"


@pytest.mark.parametrize("template", [None, {}, {"tool_use": "T"}])
def test_a_base_model_needs_a_template(template):
    with pytest.raises(BadInput, match=r"m has no chat template.*--chat-template chatml"):
        Prompting.chat(llama(template), None, (), "m")


def test_a_last_turn_can_be_left_open():
    turns = [*HELLO, {"role": "assistant", "content": "The answer is"}]
    text = Prompting(llama(), CHATML).render(turns, add_generation_prompt=False)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nThe answer is"


@pytest.mark.parametrize(
    ("template", "text", "dropped"),
    [(NO_SYSTEM, "Hello", True), (USER_ONLY, "Hello", True), (MERGED, "Be brief. Hello", False)],
    ids=["rejects", "ignores", "merges"],
)
def test_a_prompt_without_its_system_text_is_noted(template, text, dropped):
    prompting = Prompting(llama(), template)
    assert prompting.render(GUIDED) == text
    assert prompting.without_system == ({text} if dropped else set())


@pytest.mark.parametrize("template", [NO_SYSTEM, USER_ONLY, CHATML])
def test_without_a_system_turn_nothing_is_dropped(template):
    prompting = Prompting(llama(), template)
    prompting.render(HELLO)
    assert prompting.without_system == set()


def test_a_template_that_rejects_the_other_turns_as_well():
    prompting = Prompting(llama(), "{{ raise_exception('roles must alternate') }}")
    for turns in (HELLO, GUIDED):
        with pytest.raises(BadInput, match=r"rejects a conversation \(roles must alternate.*--chat-template"):
            prompting.render(turns)


IM_END = "<|im_end|>"
LLAMA3 = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("special", "eos", "template", "expected"),
    [
        (["</s>"], "</s>", CHATML, Stops((IM_END,), {})),
        (["</s>", IM_END], "</s>", CHATML, Stops((), {IM_END: FIRST + 1})),
        ([IM_END], IM_END, CHATML, Stops((), {IM_END: FIRST})),
        (["</s>"], "</s>", WITH_BOS, Stops((), {})),
        (["<|end|>", "<|eot", "<|eot_id|>"], "<|end|>", LLAMA3, Stops((), {"<|eot_id|>": FIRST + 2})),
        (["<|end|>"], "<|end|>", LLAMA3, Stops((), {})),
        (["</s>"], "</s>", "{{ raise_exception('no assistant') }}", Stops((), {})),
        (["</s>", IM_END], "</s>", None, Stops((), {})),
    ],
    ids=["text", "token", "end-token", "own-end", "other-token", "other-text", "unknown", "plain"],
)
def test_an_answer_ends_with_the_turn(special, eos, template, expected):
    assert Prompting(Tokenizer(*special, eos=eos), template).stops == expected


def test_stop_strings_of_ones_own_come_first_and_once():
    tokenizer = Tokenizer("</s>", "<|user|>", eos="</s>")
    stops = Prompting(tokenizer, CHATML, ["###", "<|user|>", IM_END, "###"]).stops
    assert stops == Stops(("###", IM_END), {"<|user|>": FIRST + 1})
    assert stops.all == ["###", IM_END, "<|user|>"]


def test_the_record_says_how_prompts_were_made():
    assert Prompting(llama(), CHATML, ["###"]).described() == {
        "prompt:chat_template": digest_bytes(CHATML.encode()),
        "prompt:bos": "<s>",
        "prompt:stop": json.dumps(["###", IM_END]),
    }
    assert Prompting(llama(adds_bos=False)).described() == {
        "prompt:chat_template": "none",
        "prompt:bos": "none",
        "prompt:stop": "[]",
    }
