"""lm_eval's requests to vLLM: each is journaled when it is finished, and the engine's batch is never drained.

lm_eval 0.4.13 passes a list of requests to ``LLM.generate``, which returns when the slowest one has ended. Token ids,
settings, scores and texts are those of lm_eval's own backend.
"""

from __future__ import annotations

import copy
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from halos_eval.digests import digest_json
from halos_eval.stages.engine import Ask, Engine, Finished, seed_from
from halos_eval.stages.harness.answers import Tally, as_sent, longest_answer
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.thinking import CUT
from halos_eval.storage.journal import Journal

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

log = logging.getLogger(__name__)

TOKENIZED = 256
"""Requests that are tokenized together, when the engine can take the first: all of MMLU's would take gigabytes."""


class Item(NamedTuple):
    """A request of lm_eval as the engine gets it."""

    asks: list[Ask]
    """Its parts: the windows of a long text, otherwise one."""
    truncated: bool
    """Whether lm_eval truncates the prompt."""


Split = Callable[[Iterable["Instance"]], Iterable[Item]]


class Streamed:
    """Answers the requests of one task on an engine."""

    def __init__(self, model: LM, engine: Engine, journal: Journal, prompting: Prompting, seed: Sequence[int]) -> None:
        """Replace the three methods of ``model``, lm_eval's vLLM backend, that answer requests."""
        self.tally = Tally()
        """The counts, which are updated as requests are answered."""
        self.at_once: int | None = None
        """Limit of the requests in the engine."""
        self._model, self._engine, self._journal, self._prompting, self._seed = model, engine, journal, prompting, seed
        self._done = journal.load()
        # With this, loglikelihood of lm_eval only splits its requests into token ids.
        model._loglikelihood_tokens = lambda pairs, **_: pairs
        self._encode_pairs = model.loglikelihood
        model.loglikelihood = self._loglikelihood
        model.loglikelihood_rolling = self._loglikelihood_rolling
        model.generate_until = self._generate_until

    def _loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        entries = self._answered("loglikelihood", requests, self._pairs)
        return [(value, greedy) for value, greedy in (entry["score"] for entry in entries)]

    def _loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        return [entry["score"][0] for entry in self._answered("loglikelihood_rolling", requests, self._windows)]

    def _generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        from lm_eval.models.utils import postprocess_generated_text

        sent = _seeded([as_sent(request, self._prompting.stops.all) for request in requests], self._seed)
        texts = []
        for request, entry in zip(sent, self._answered("generate_until", sent, self._prompts), strict=True):
            text, cut = (
                postprocess_generated_text(entry["text"], self._settings(request)[1], None),
                entry["finish"] == "length",
            )
            self.tally.add_answer(text)
            self.tally.answers["cut_at_max_tokens"] += cut
            texts.append(text + CUT if cut and self._prompting.thinking else text)
        return texts

    def _pairs(self, requests: Iterable[Instance]) -> Iterator[Item]:
        longest = self._model.max_length - 1  # vLLM must generate a token after the scored ones
        for _, context, continuation in self._encode_pairs([*requests], disable_tqdm=True):
            ids = context + continuation
            scored = min(len(continuation), longest - 1)
            yield Item([Ask("", ids[-longest:], scored=scored)], len(ids) > longest)

    def _windows(self, requests: Iterable[Instance]) -> Iterator[Item]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self._model.tok_encode(request.args[0]),
                prefix_token=self._model.prefix_token_id,
                max_seq_len=self._model.max_length - 2,
                context_len=1,
            )
            pairs = map(make_disjoint_window, windows)
            asks = [Ask("", context + continuation, scored=len(continuation)) for context, continuation in pairs]
            yield Item(asks, False)

    def _prompts(self, requests: Iterable[Instance]) -> Iterator[Item]:
        requests = [*requests]
        encoded = self._model.tok_encode([request.args[0] for request in requests])
        for request, ids in zip(requests, encoded, strict=True):
            params, until, most = self._settings(request)
            room = self._model.max_length - most
            yield Item([Ask("", ids[-room:], params | {"stop": until, "max_tokens": most})], len(ids) > room)

    def _settings(self, request: Instance) -> tuple[dict[str, Any], list[str], int]:
        """Return arguments for vLLM, stop strings and the longest answer. Raise BadInput if it leaves no prompt."""
        model, options = self._model, request.args[1]
        longest_answer(options, model.max_gen_toks, model.max_length)
        end = model.tokenizer.decode(model.eot_token_id) or model.tokenizer.eos_token
        params, until, most = model.modify_gen_kwargs(options, eos=end, default_max_gen_toks=model.max_gen_toks)
        return params, until, most

    def _answered(self, method: str, requests: list[Instance], split: Split) -> list[dict[str, Any]]:
        """Return the journal's entries of ``requests``, after computing those that are missing."""
        keys = _keys(method, requests)
        todo = [number for number, key in enumerate(keys) if key not in self._done]
        self.tally.requests.update(resumed=len(keys) - len(todo), computed=len(todo))
        for count, (number, entry) in enumerate(self._computed(todo, keys, requests, split), len(keys) - len(todo) + 1):
            self._done[keys[number]] = entry
            self._journal.add(keys[number], entry)
            if count % max(1, len(todo) // 20) == 0:
                log.info("%s: %d of %d requests", method, count, len(keys))
        entries = [self._done[key] for key in keys]
        for request, entry in zip(requests, entries, strict=True):
            self.tally.add(request, self._prompting, entry["truncated"])
        return entries

    def _computed(
        self, todo: list[int], keys: list[str], requests: list[Instance], split: Split
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the numbers and entries of the requests ``todo`` as they finish."""
        items: dict[int, Item] = {}
        results: dict[int, list[Finished]] = {number: [] for number in todo}

        def asks() -> Iterator[Ask]:
            for start in range(0, len(todo), TOKENIZED):
                numbers = todo[start : start + TOKENIZED]
                for number, item in zip(numbers, split(requests[one] for one in numbers), strict=True):
                    items[number] = item
                    for part, ask in enumerate(item.asks):
                        yield ask._replace(key=f"{number}.{part}")

        with closing(self._engine.finished(asks(), self.at_once)) as finished:
            for result in finished:
                number = int(result.key.partition(".")[0])
                results[number].append(result)
                if len(results[number]) == len(items[number].asks):
                    yield number, _entry(items.pop(number), results[number])
        yield from ((number, _entry(item, [])) for number, item in items.items())  # empty texts have no windows


def _seeded(requests: Iterable[Instance], seed: Sequence[int]) -> list[Instance]:
    """Return generation requests of which each that is sampled has a seed of its own, whatever its task sets.

    So a resumed run draws the same answers, and several answers to one prompt differ, in the journal too.
    """
    seen: Counter[Any] = Counter()
    seeded = []
    for request in requests:
        prompt, options = request.args
        same = (request.task_name, request.doc_id, prompt)
        found = copy.copy(request)
        if options.get("do_sample") is not False and options.get("temperature", 1.0):  # 1 is vLLM's default
            own = seed_from(json.dumps([[*seed], *same, seen[same]]))
            found.arguments = (prompt, {**options, "seed": own})
        seen[same] += 1
        seeded.append(found)
    return seeded


def _keys(method: str, requests: Iterable[Instance]) -> list[str]:
    """Return the keys of requests in the journal. Equal requests (samples of one prompt) have several answers."""
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        digest = digest_json([method, request.args])
        keys.append(f"{digest}.{seen[digest]}")
        seen[digest] += 1
    return keys


def _entry(item: Item, results: list[Finished]) -> dict[str, Any]:
    """Return the entry of a finished request for the journal."""
    entry: dict[str, Any] = {"truncated": item.truncated}
    if results and results[0].samples:
        return entry | results[0].samples[0]._asdict()
    ordered = sorted(results, key=lambda result: int(result.key.partition(".")[2]))
    scores = [result.score for result in ordered if result.score]
    return entry | {"score": [sum(value for value, _ in scores), all(greedy for _, greedy in scores)]}
