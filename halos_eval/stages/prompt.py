"""How prompts are made: chat template, BOS and stop strings. `sample`, `harness` and `halos-eval prompt` ask here only.

The token ids are those of lm_eval 0.4.13 (``tok_encode`` of its backends) and of HALOs' ``train.sample``: the rendered
text is tokenized as any text, so the tokenizer adds its BOS. HALOs' sampler sends two BOS tokens if the template writes
one itself; lm_eval and this module do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jinja2 import TemplateError
from pydantic import BaseModel

from halos_eval.config.chat import ChatSettings
from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput
from halos_eval.stages import thinking
from halos_eval.stages.chat_template import read_template
from halos_eval.stages.thinking import Thinking, template_arguments

CHATML_END = "<|im_end|>"
PROBE = "halos-eval"  # a text that no template changes
PLAIN = ChatSettings()

Turns = Sequence[dict[str, Any]]


class Stops(NamedTuple):
    """Where an answer ends, besides the end tokens of the model."""

    texts: tuple[str, ...]
    """Stop strings that are ordinary text."""
    tokens: dict[str, int]
    """Stop strings that are special tokens, with their ids."""

    @property
    def all(self) -> list[str]:
        """All stop strings."""
        return [*self.texts, *self.tokens]


class Request(BaseModel):
    """One request to the model."""

    model_config = FROZEN

    title: str
    """What it is for: the task or prompt set, and the number of the document or prompt."""
    token_ids: list[int]
    """Token ids of the prompt."""
    continuation_ids: list[int] | None = None
    """Token ids of the text whose log-likelihood is measured; None if the model generates an answer."""
    stop: list[str] = []
    """Strings at which the answer ends. The end tokens of the model stop, too."""


class Prompting:
    """How one model gets its prompts."""

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        stop: Sequence[str] = (),
        arguments: Mapping[str, Any] = MappingProxyType({}),
        thinking: Thinking | None = None,
    ) -> None:
        """Use the chat template with this text (None: plain text), and ``stop`` besides the end of the model's turn.

        :param arguments: arguments of the chat template.
        :param thinking: how the model's thinking is recognized; None if it is not declared.
        """
        self.tokenizer = tokenizer
        self.template = template
        self.arguments = arguments
        self.thinking = thinking
        self.after_thinking = tuple(stop) if thinking else ()
        """Stop strings that end the answer but not the thinking, so that they are not sent to the model."""
        self.without_system: set[str] = set()
        """Rendered prompts in which the text of a system turn is missing."""
        # vLLM's tokenizer for files in Mistral's own format has no such list.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special = {str(token): number for number, token in added.items() if token.special}
        """Special tokens with their ids."""
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self._beginning = "" if first is None else tokenizer.decode(first)
        self.stops = self._stops(() if thinking else stop)

    @classmethod
    def chat(
        cls, tokenizer: Any, name: str | None, stop: Sequence[str], model: str, settings: ChatSettings = PLAIN
    ) -> Prompting:
        """Use the chat template ``name`` (see ``read_template``) or the tokenizer's own.

        Raise BadInput without one, or if it does not know what ``settings`` want.
        """
        own = getattr(tokenizer, "chat_template", None)
        template = read_template(name) or (own.get("default") if isinstance(own, dict) else own)
        if not template:
            raise BadInput(
                f"{model} has no chat template; it may be a base model. Set --chat-template chatml for HALOs' own, or "
                "the path of a Jinja file; a harness task can also run without apply_chat_template"
            )
        arguments = template_arguments(settings, template, model)
        return cls(tokenizer, template, stop, arguments, Thinking.of(settings))

    def render(self, turns: Turns, add_generation_prompt: bool = True) -> str:
        """Return the text of ``turns``; without a generation prompt, the last turn is left open.

        The signature is that of lm_eval's ``LM.apply_chat_template``. Like there, a template that rejects the system
        turn gets the others. Raise BadInput if it rejects these, too.
        """
        ending = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            text = self._apply(turns, **ending)
        except TemplateError:
            text = self._apply_without_system(turns, ending)
        if any(turn["role"] == "system" and turn["content"].strip() not in text for turn in turns):
            self.without_system.add(text)
        return text

    def _apply(self, turns: Turns, **ending: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            list(turns), chat_template=self.template, tokenize=False, **ending, **self.arguments
        )
        return text

    def _apply_without_system(self, turns: Turns, ending: dict[str, bool]) -> str:
        try:
            return self._apply([turn for turn in turns if turn["role"] != "system"], **ending)
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise BadInput(
                f"the chat template rejects a conversation ({error}; roles: {roles}). Set --chat-template to another "
                "one, or change fewshot_as_multiturn"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``, with BOS as the tokenizer adds it, but not if the text begins with BOS."""
        written = self._beginning and text.startswith(self._beginning)
        return list(self.tokenizer.encode(text, **({"add_special_tokens": False} if written else {})))

    def _stops(self, stop: Sequence[str]) -> Stops:
        every = dict.fromkeys([*stop, *self._ends_of_turn()])
        return Stops(
            texts=tuple(text for text in every if text not in self.special),
            tokens={text: self.special[text] for text in every if text in self.special},
        )

    def _ends_of_turn(self) -> list[str]:
        """Return what the template writes after an answer, if the model's own end token may be another one.

        ChatML ends each turn with a text that need not be a special token. Of other templates, only a special token is
        taken. The model's end token always stops.
        """
        if self.template is None:
            return []
        if CHATML_END in self.template:
            return [CHATML_END]
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        try:
            _, _, end = self._apply(turns).partition(PROBE)
        except TemplateError:
            return []
        tokens = sorted(self.special.keys() - {self.tokenizer.eos_token}, key=len)
        return [token for token in tokens if end.strip().startswith(token)][-1:]

    def described(self) -> dict[str, str]:
        """Return the choice, for the provenance of a record."""
        text = PROBE if self.template is None else self.render([{"role": "user", "content": PROBE}])
        bos = self.tokenizer.bos_token_id
        sent = bos is not None and self.encode(text)[:1] == [bos]
        return {
            "prompt:chat_template": "none" if self.template is None else digest_bytes(self.template.encode()),
            "prompt:bos": str(getattr(self.tokenizer, "bos_token", bos)) if sent else "none",
            "prompt:stop": json.dumps([*self.stops.all, *self.after_thinking]),
            **thinking.described(self.arguments, self.thinking),
        }
