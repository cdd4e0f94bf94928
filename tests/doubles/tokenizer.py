"""A tokenizer of one token a character, with special tokens, BOS and a chat template, as transformers has them."""

from __future__ import annotations

import re
from types import SimpleNamespace

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FIRST = 0x110000  # ids above those of all characters


class Special(SimpleNamespace):
    """A token of the vocabulary, as ``added_tokens_decoder`` lists it."""

    def __str__(self):
        return self.content


class Tokenizer:
    """Its ids are code points, and FIRST, FIRST + 1, ... for the special tokens."""

    def __init__(self, *special, bos=None, eos=None, adds_bos=False, chat_template=None):
        self.special = {text: FIRST + number for number, text in enumerate(special)}
        self.added_tokens_decoder = {
            number: Special(content=text, special=True) for text, number in self.special.items()
        }
        self.bos_token, self.eos_token = bos, eos
        self.bos_token_id, self.eos_token_id = self.special.get(bos), self.special.get(eos)
        self.adds_bos = adds_bos
        self.chat_template = chat_template

    def encode(self, text, add_special_tokens=True):
        pattern = "|".join(map(re.escape, self.special)) or "(?!)"
        ids = [self.special.get(part, None) or ord(part) for part in re.findall(f"{pattern}|.", text, re.DOTALL)]
        return [self.bos_token_id, *ids] if self.adds_bos and add_special_tokens else ids

    def decode(self, ids):
        texts = {number: text for text, number in self.special.items()}
        return "".join(texts.get(one) or chr(one) for one in ([ids] if isinstance(ids, int) else ids))

    def apply_chat_template(
        self, turns, chat_template, tokenize, add_generation_prompt=False, continue_final_message=False, **arguments
    ):
        assert not tokenize

        def refuse(message):
            raise TemplateError(message)

        template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(chat_template)
        text = template.render(
            messages=turns,
            add_generation_prompt=add_generation_prompt,
            raise_exception=refuse,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
            **arguments,
        )
        return text[: text.rindex(turns[-1]["content"]) + len(turns[-1]["content"])] if continue_final_message else text
