"""What every backend does with lm_eval's requests: how they are sent, and what is counted.

Spoiled prompts and answers are counted: lm_eval only logs that it truncates a prompt from the left, and does not say
that an answer was cut off.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from halos_eval.errors import BadInput
from halos_eval.stages.prompt import Prompting

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# Generation settings that limit an answer, in lm_eval's order of priority (normalize_gen_kwargs).
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Tally:
    """Counts over all requests of a run, those that an earlier run answered included."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        """Requests, ``computed`` or ``resumed``."""
        self.answers: Counter[str] = Counter()
        """``generated_answers``, and how many of them are ``empty`` or ``cut_at_max_tokens``."""
        self.documents: dict[str, set[Any]] = {"truncated_prompts": set(), "dropped_system_texts": set()}
        """Documents with such a prompt. Several requests (choices) of one document count once."""

    def add(self, request: Instance, prompting: Prompting, truncated: bool) -> None:
        """Count a request, and whether its prompt was truncated."""
        document = (request.task_name, request.doc_id)
        if truncated:
            self.documents["truncated_prompts"].add(document)
        if request.args[0] in prompting.without_system:
            self.documents["dropped_system_texts"].add(document)

    def add_answer(self, text: str) -> None:
        """Count a generated answer."""
        self.answers["generated_answers"] += 1
        self.answers["empty"] += not text.strip()

    @property
    def details(self) -> dict[str, float]:
        """The counts for the record. Those of generated answers are missing if the task generates none."""
        details: dict[str, float] = {name: len(found) for name, found in self.documents.items()}
        if self.answers["generated_answers"]:
            details |= {name: self.answers[name] for name in ("generated_answers", "cut_at_max_tokens", "empty")}
        return details


def longest_answer(options: Mapping[str, Any], default: int, max_length: int) -> int:
    """Return the tokens that a generation may take. Raise BadInput if that leaves none for a prompt."""
    most = next((int(options[name]) for name in LIMITS if options.get(name) is not None), default)
    if most >= max_length:
        raise BadInput(
            f"the task lets the model generate {most} tokens, which leaves none of its length of {max_length} for a "
            "prompt. Raise --max-model-len, or use another task for this model"
        )
    return most


def as_sent(request: Instance, stop: list[str]) -> Instance:
    """Return a copy of a generation request that also ends at the strings ``stop``, and is greedy by default.

    lm_eval 0.4.13 describes greedy decoding as its default. Its vLLM backend instead samples at vLLM's temperature 1
    for a task that sets neither ``do_sample`` nor ``temperature``.
    """
    context, options = request.args
    until = options.get("until") or []
    until = [until] if isinstance(until, str) else until
    own: dict[str, Any] = {"until": list(dict.fromkeys([*until, *stop]))}
    if options.get("do_sample") is None and not options.get("temperature"):
        own["do_sample"] = False
    found = copy.copy(request)
    found.arguments = (context, options | own)
    return found
