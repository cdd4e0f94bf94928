"""lm_eval's requests to transformers: answered and journaled in chunks, because that is how it computes them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from halos_eval.digests import digest_json
from halos_eval.stages.harness.answers import Tally, as_sent, longest_answer
from halos_eval.stages.prompt import Prompting
from halos_eval.storage.journal import Journal

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

log = logging.getLogger(__name__)


class Watch:
    """Notes what lm_eval's backend does with the prompts and answers of a chunk of requests."""

    def __init__(self, model: LM, prompting: Prompting) -> None:
        """Wrap the two methods of ``model`` that get token ids, as lm_eval 0.4.13 has them."""
        self._model, self._special = model, prompting.special
        self._truncated: set[int] = set()
        self._cut = 0
        scored = model._loglikelihood_tokens
        longest = model.max_length + 1  # transformers is not given the last of the scored tokens

        def score(requests: list[Any], *rest: Any, **options: Any) -> Any:
            lengths = [len(context) + len(continuation) for _, context, continuation in requests]
            self._truncated |= {number for number, length in enumerate(lengths) if length > longest}
            return scored(requests, *rest, **options)

        model._loglikelihood_tokens = score
        model._model_generate = self._watched(model._model_generate)

    def begin(self, method: str, chunk: list[Instance]) -> None:
        """Forget the previous chunk. Raise BadInput if a prompt of this one would be truncated to nothing."""
        self._truncated, self._cut = set(), 0
        if method == "generate_until":
            self._truncated = {number for number, one in enumerate(chunk) if self._is_truncated(*one.args[:2])}

    def notes(self) -> dict[str, Any]:
        """Return the positions of truncated prompts in the chunk, and the number of answers that were cut off."""
        return {"truncated": sorted(self._truncated), "cut": self._cut}

    def _is_truncated(self, context: str, options: dict[str, Any]) -> bool:
        most = longest_answer(options, self._model.max_gen_toks, self._model.max_length)
        return bool(len(self._model.tok_encode(context)) + most > self._model.max_length)

    def _watched(self, original: Callable[..., Any]) -> Callable[..., Any]:
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


def in_chunks(model: LM, journal: Journal, save_every: int, prompting: Prompting, watch: Watch) -> Tally:
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
                _count(tally, chunk, done[key], prompting, method == "generate_until")
                answers += [tuple(one) if isinstance(one, list) else one for one in done[key]["answers"]]
            return answers

        return answer

    for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, method, resumable(method))
    return tally


def _count(tally: Tally, chunk: list[Instance], entry: dict[str, Any], prompting: Prompting, generated: bool) -> None:
    for number, request in enumerate(chunk):
        tally.add(request, prompting, number in entry["truncated"])
    if generated:
        for text in entry["answers"]:
            tally.add_answer(text)
        tally.answers["cut_at_max_tokens"] += entry["cut"]
