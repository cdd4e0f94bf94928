"""Thinking of a model: how the chat template turns it on or off, and how it is separated from the answer.

vLLM's reasoning parsers belong to its server; its offline engine has none. The vLLM backend of lm_eval 0.4.13 loses
``enable_thinking`` of ``chat_template_args``, takes thinking without an end for an answer, and does not tell which
answers were cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

from halos_eval.config.chat import SWITCHES, THINK_END, THINK_START, ChatSettings
from halos_eval.errors import BadInput

KNOWN = (
    (THINK_START, THINK_END),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
"""Tags of published models, to notice thinking that nothing declares."""
LEAST_ENDED = 0.95
"""Share of answers that must have an end: scores over fewer do not represent the set."""
CUT = "\N{NULL}cut at the limit of tokens"
"""Mark at the end of an answer of a model that may think, if its budget was used up."""
OF_TRANSFORMERS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Tags that only transformers' Jinja knows."""
BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")
"""Empty lines between the thinking and the answer. An indent is part of the answer."""
GIVEN = frozenset(
    {"messages", "add_generation_prompt", "tools", "documents", "raise_exception", "strftime_now", "bos_token",
     "eos_token", "pad_token", "unk_token"}
)  # fmt: skip
"""Names that transformers gives to each template itself."""


class Answer(NamedTuple):
    """An answer without its thinking."""

    text: str
    """The text that is judged and scored; empty if the thinking has no end."""
    thinking: str = ""
    """The thinking with its tags; empty if there is none."""
    cut: bool = False
    """Whether the budget was used up before the answer ended."""
    unended: bool = False
    """Whether the model ended its answer within its thinking."""


class Thinking(NamedTuple):
    """How a model's thinking is recognized."""

    mode: str
    start: str = THINK_START
    end: str = THINK_END

    @classmethod
    def of(cls, settings: ChatSettings) -> Self | None:
        """Return what ``settings`` declare; None if they do not declare that the model may think."""
        if settings.mode is None:
            return None
        return cls(settings.mode, settings.think_start_token or THINK_START, settings.think_end_token or THINK_END)

    def separated(self, prompt: str, text: str, cut: bool = False, stops: Iterable[str] = ()) -> Answer:
        """Return the answer in ``text``, which ends at the first of the ``stops`` that is not in the thinking.

        :param prompt: the text that the model continued; some chat templates begin the thinking in it.
        :param cut: whether the model was stopped at its budget.
        """
        answer, thinking, place = "", "", 0
        inside = prompt.rstrip().endswith(self.start)
        while True:
            start, end = text.find(self.start, place), text.find(self.end, place)
            if inside or (not thinking and end >= 0 and not 0 <= start < end):
                # An end without a beginning: the model left it out, and all before was thinking.
                if end < 0:
                    return Answer("", thinking + text[place:], cut, not cut)
                thinking += text[place : end + len(self.end)]
                place, inside = end + len(self.end), False
                continue
            answer += text[place : None if start < 0 else start]
            found, stopped = ended_at(BLANK_LINES.sub("", answer) if thinking else answer, stops)
            if stopped or start < 0:
                return Answer(found, thinking, cut and not stopped)
            thinking += self.start
            place, inside = start + len(self.start), True


def has_undeclared(prompt: str, text: str) -> bool:
    """Return whether an answer has thinking, by the tags of published models: in it, or begun by the prompt."""
    return any(prompt.rstrip().endswith(start) or start in text or end in text for start, end in KNOWN)


def ended_at(text: str, stops: Iterable[str]) -> tuple[str, bool]:
    """Return the text before the first of the stop strings in it, and whether it has one."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def without_special(text: str, special: Iterable[str]) -> str:
    """Return the text without special tokens."""
    for token in special:
        text = text.replace(token, "")
    return text


def template_arguments(settings: ChatSettings, template: str, model: str) -> dict[str, Any]:
    """Return the arguments of a chat template. Raise BadInput for those that it does not know."""
    arguments: dict[str, Any] = dict(settings.chat_template_args)
    known = variables(template)
    if settings.thinking in {"on", "off"}:
        switch = next((name for name in SWITCHES if known is None or name in known), None)
        if switch is None:
            raise BadInput(
                f"the chat template of {model} cannot turn thinking {settings.thinking}: it has no argument "
                f"{' or '.join(SWITCHES)}. Set thinking: default, or another chat_template"
            )
        arguments[switch] = settings.thinking == "on"
    unknown = sorted(arguments.keys() - known) if known is not None else []
    if unknown:
        own = ", ".join(sorted(known - GIVEN)) if known else ""
        raise BadInput(
            f"chat_template_args has {', '.join(unknown)}, which the chat template of {model} does not use; it takes "
            f"{own or 'no arguments'}. Remove or correct it"
        )
    return arguments


def variables(template: str) -> frozenset[str] | None:
    """Return the names that a chat template uses; None if only transformers can read it."""
    from jinja2 import Environment, TemplateError, meta

    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 (parsed only)
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(OF_TRANSFORMERS.sub("", template))))
    except TemplateError:
        return None


def described(arguments: Mapping[str, Any], thinking: Thinking | None) -> dict[str, str]:
    """Return the choice, for the provenance of a record; nothing for a model without these settings."""
    found = {"prompt:chat_template_args": json.dumps(arguments, sort_keys=True)} if arguments else {}
    return found | ({"prompt:thinking": f"{thinking.mode}: {thinking.start}...{thinking.end}"} if thinking else {})
