"""``halos-eval prompt`` with a tokenizer whose ids can be read; tasks are in tests/real/test_prompts.py."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from halos_eval.cli import prompt as command
from halos_eval.cli.prompt import PromptConfig, prompt
from halos_eval.errors import BadInput
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.prompt import Request
from tests.doubles.tokenizer import CHATML, FIRST, Tokenizer


@pytest.fixture
def tokenizer(monkeypatch):
    found = Tokenizer("<s>", "</s>", bos="<s>", eos="</s>", adds_bos=True, chat_template=CHATML)
    monkeypatch.setattr(command, "load_tokenizer", lambda *_: found)
    return found


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text('[{"instruction": "Hi"}, {"instruction": "Bye"}]')
    return str(path)


def test_what_sampling_sends(tokenizer, rows, capsys):
    prompt(PromptConfig(model="m", prompts=rows, stop=("###",)))
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"--- {rows}, prompt 0: {len(text) + 1} tokens"
    assert f"\n{FIRST} {' '.join(str(ord(letter)) for letter in text)}\n<s>{text}\n" in out
    assert '\n--- ends at: ["###", "<|im_end|>"]\n' in out
    assert f"\nend token: </s> ({FIRST + 1})\n" in out
    assert "Bye" not in out


def test_the_printed_text_is_the_prompt_but_for_controls_of_a_terminal(tokenizer, asked, monkeypatch, capsys):
    kept = "a\tb\u00a0c\u3000d\u200de\n"  # tab, no-break and wide space, joiner
    monkeypatch.setattr(tokenizer, "decode", lambda ids: f"{kept}\x1b[31m\r\x9b\u202e")
    prompt(PromptConfig(model="m", task="t"))
    assert capsys.readouterr().out.count(f"\n{kept}\\x1b[31m\\r\\x9b\\u202e\n") == 2  # also the scored text


def test_as_json(tokenizer, rows, capsys):
    tokenizer.chat_template = "{{ messages[0].content }}</s>"
    prompt(PromptConfig(model="m", prompts=rows, first=2, json=True))
    found = json.loads(capsys.readouterr().out)
    assert [(one["text"], one["token_ids"]) for one in found["requests"]] == [
        ("<s>Hi</s>", [FIRST, ord("H"), ord("i"), FIRST + 1]),
        ("<s>Bye</s>", [FIRST, *map(ord, "Bye"), FIRST + 1]),
    ]
    assert {key: found[key] for key in ("bos", "stop", "stop_token_ids", "end_token", "end_token_id")} == {
        "bos": "<s>",
        "stop": [],
        "stop_token_ids": [],
        "end_token": "</s>",
        "end_token_id": FIRST + 1,
    }


@pytest.fixture
def asked(monkeypatch):
    """The options and the way of prompting with which a task's requests were asked for."""
    asked = []

    def requests_of(config, prompting):
        asked.append((config, prompting))
        prompting.without_system.add("a")
        return [Request(title="t, document 0", token_ids=[ord("a")], continuation_ids=[ord("b")])]

    monkeypatch.setattr(command, "requests_of", requests_of)
    return asked


@pytest.mark.parametrize("applied", [False, True])
def test_a_task_gets_the_options_of_harness(tokenizer, asked, applied, capsys):
    tokenizer.chat_template = CHATML if applied else None
    options = {"num_fewshot": 2, "apply_chat_template": applied, "include_path": "/i", "seed": (1, 2, 3, 4)}
    prompt(PromptConfig(model="m", task="t", first=3, **options))
    ((config, prompting),) = asked
    assert config == HarnessConfig(model="m", task="t", limit=3, output_dir="", **options)
    assert prompting.template == (CHATML if applied else None)
    out = capsys.readouterr().out
    assert out.startswith("--- t, document 0: 1 tokens\n97\na\n--- scored: 1 tokens\n98\nb\n")
    assert "drops the system turn" in out


@pytest.mark.parametrize("options", [{}, {"task": "t", "apply_chat_template": True}], ids=str)
def test_a_chat_needs_a_template(tokenizer, asked, options):
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="m has no chat template"):
        prompt(PromptConfig(model="m", **options))
    assert asked == []


def test_options_of_the_other_stage_are_rejected():
    with pytest.raises(ValidationError, match="include_path requires --task"):
        PromptConfig(model="m", include_path="/i")


def test_thinking_changes_what_is_sent(tokenizer, rows, capsys):
    tokenizer.chat_template = CHATML + "{% if enable_thinking %}<think>{% endif %}"
    prompt(PromptConfig(model="m", prompts=rows, thinking="on", system_instruction="Be brief.", stop=("###",)))
    shown = capsys.readouterr().out
    assert "Be brief." in shown
    assert "<think>" in shown
    assert '--- ends at: ["<|im_end|>"]' in shown
    assert "thinking: on: <think>...</think>" in shown
