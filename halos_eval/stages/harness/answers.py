"""The model's answers to lm_eval's requests. They are journaled, so that a killed run resumes.

Spoiled prompts and answers are counted: lm_eval only logs that it truncates a prompt from the left, and does not say
that an answer was cut off.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from halos_eval.digests import digest_json
from halos_eval.errors import BadInput
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.thinking import CUT
from halos_eval.storage.journal import Journal

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

log = logging.getLogger(__name__)

# Generation settings that limit an answer, in lm_eval's order of priority (normalize_gen_kwargs).
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Tally:
    """Counts over all requests of a run, those that an earlier run answered included."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        """Requests, ``computed`` or ``resumed``."""
        self.answers: Counter[str] = Counter()
        """Generated answers, ``empty`` or ``cut_at_max_tokens``."""
        self.documents: dict[str, set[Any]] = {"truncated_prompts": set(), "dropped_system_texts": set()}
        """Documents with such a prompt. Several requests (choices) of one document count once."""
        self._generated = False

    def add(self, method: str, chunk: list[Instance], entry: dict[str, Any], prompting: Prompting) -> None:
        """Count a chunk of requests with their entry in the journal."""
        marked = {"truncated_prompts": [chunk[number] for number in entry["truncated"]]}
        marked["dropped_system_texts"] = [one for one in chunk if one.args[0] in prompting.without_system]
        for name, requests in marked.items():
            self.documents[name] |= {(one.task_name, one.doc_id) for one in requests}
        if method == "generate_until":
            self._generated = True
            self.answers["empty"] += sum(not answer.strip() for answer in entry["answers"])
            self.answers["cut_at_max_tokens"] += entry["cut"]

    @property
    def details(self) -> dict[str, float]:
        """The counts for the record. Those of generated answers are missing if the task generates none."""
        details: dict[str, float] = {name: len(found) for name, found in self.documents.items()}
        if self._generated:
            details |= {name: self.answers[name] for name in ("cut_at_max_tokens", "empty")}
        return details


class Watch:
    """Notes what lm_eval's backend does with the prompts and answers of a chunk of requests."""

    def __init__(self, model: LM, backend: str, prompting: Prompting) -> None:
        """Wrap the two methods of ``model`` that get token ids, as lm_eval 0.4.13 has them."""
        self._model, self._special = model, prompting.special
        self._marks_cut = prompting.thinking is not None
        self._truncated: set[int] = set()
        self._cut = 0
        scored = model._loglikelihood_tokens
        # vLLM must generate a token after the scored ones; transformers is not given the last of these
        longest = model.max_length + (-1 if backend == "vllm" else 1)

        def score(requests: list[Any], *rest: Any, **options: Any) -> Any:
            lengths = [len(context) + len(continuation) for _, context, continuation in requests]
            self._truncated |= {number for number, length in enumerate(lengths) if length > longest}
            return scored(requests, *rest, **options)

        model._loglikelihood_tokens = score
        model._model_generate = (self._vllm if backend == "vllm" else self._transformers)(model._model_generate)

    def begin(self, method: str, chunk: list[Instance]) -> None:
        """Forget the previous chunk. Raise BadInput if a prompt of this one would be truncated to nothing."""
        self._truncated, self._cut = set(), 0
        if method == "generate_until":
            self._truncated = {number for number, one in enumerate(chunk) if self._is_truncated(*one.args[:2])}

    def notes(self) -> dict[str, Any]:
        """Return the positions of truncated prompts in the chunk, and the number of answers that were cut off."""
        return {"truncated": sorted(self._truncated), "cut": self._cut}

    def _is_truncated(self, context: str, options: dict[str, Any]) -> bool:
        most = next((int(options[name]) for name in LIMITS if options.get(name) is not None), self._model.max_gen_toks)
        if most >= self._model.max_length:
            raise BadInput(
                f"the task lets the model generate {most} tokens, which leaves none of its length of "
                f"{self._model.max_length} for a prompt. Raise --max-model-len, or use another task for this model"
            )
        return bool(len(self._model.tok_encode(context)) + most > self._model.max_length)

    def _vllm(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def generate(requests: list[list[int]], generate: bool = False, **options: Any) -> Any:
            outputs = original(requests=requests, generate=generate, **options)
            if generate:
                cut = [output.outputs[0] for output in outputs if output.outputs[0].finish_reason == "length"]
                self._cut += len(cut)
                for one in cut if self._marks_cut else ():
                    one.text += CUT
            return outputs

        return generate

    def _transformers(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Also end each answer at a stop string that is a special token.

        lm_eval ends a batch when all of its answers have the stop string, and decodes without special tokens, so that
        it does not find the place to cut the others.
        """

        def generate(context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
            own = self._model.model.generation_config.eos_token_id
            ends = {*(own if isinstance(own, list) else [own]), *(self._special.get(text) for text in stop)} - {None}
            options["eos_token_id"] = sorted(ends) or None
            made = original(context=context, max_length=max_length, stop=stop, **options)
            start = context.shape[1]
            if made.shape[1] >= max_length:
                self._cut += sum(self._is_cut(row[start:], ends, stop) for row in made.tolist())
            return made

        return generate

    def _is_cut(self, tokens: list[int], ends: set[Any], stop: list[str]) -> bool:
        text = self._model.tokenizer.decode(tokens)
        return not ends.intersection(tokens) and not any(one in text for one in stop)


def journaled(model: LM, journal: Journal, save_every: int, prompting: Prompting, watch: Watch) -> Tally:
    """Make the model's three methods journal finished chunks, and skip these in a later run.

    Chunks are cut from the whole list of requests, so a resumed run forms the same batches and gets the same numbers.
    Return the counts, which are updated as requests are answered.
    """
    done = journal.load()
    tally = Tally()

    def resumable(method: str) -> Callable[[list[Any]], list[Any]]:
        compute = getattr(model, method)

        def answer(requests: list[Any], **options: Any) -> list[Any]:
            answers: list[Any] = []
            if method == "generate_until":
                requests = [as_sent(request, prompting.stops.all) for request in requests]
            for start in range(0, len(requests), save_every):
                chunk = requests[start : start + save_every]
                key = digest_json([method, start, [request.args for request in chunk]])
                tally.requests["resumed" if key in done else "computed"] += len(chunk)
                if key not in done:
                    watch.begin(method, chunk)
                    done[key] = {"answers": compute(chunk, **options), **watch.notes()}
                    journal.add(key, done[key])
                    log.info("%s: %d of %d requests", method, start + len(chunk), len(requests))
                tally.add(method, chunk, done[key], prompting)
                answers += [tuple(one) if isinstance(one, list) else one for one in done[key]["answers"]]
            return answers

        return answer

    for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, method, resumable(method))
    return tally


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
