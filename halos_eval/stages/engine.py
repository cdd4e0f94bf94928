"""A loaded engine, and the one loop that feeds it: a finished request is replaced at once.

``LLM.generate`` of vLLM returns nothing before its slowest request has ended. So do batches that are cut from a list of
requests: at the end of each, the hardware computes a few long answers and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

AHEAD = 2
"""Requests in the engine, as a multiple of those that it computes at once: it never waits for a prompt."""


class Ask(NamedTuple):
    """One request: generate answers to a prompt, or score the end of a text."""

    key: str
    """Unique among the requests that are in the engine."""
    token_ids: list[int]
    """Token ids of the prompt, or of the whole text."""
    params: Mapping[str, Any] = {}
    """Arguments of vLLM's ``SamplingParams`` for what is generated."""
    scored: int | None = None
    """Number of tokens at the end whose log-likelihood is computed; None to generate answers."""


class Sample(NamedTuple):
    """One generated answer."""

    text: str
    """The answer, without the stop string that ended it."""
    tokens: int
    """Number of its tokens."""
    finish: str | None
    """vLLM's reason for its end: ``stop``, or ``length`` if it was cut off."""


class Finished(NamedTuple):
    """The result of a request."""

    key: str
    """The key of the request."""
    prompt_tokens: int
    """Number of tokens of the prompt."""
    samples: tuple[Sample, ...] = ()
    """The generated answers, in the order of their numbers."""
    score: tuple[float, bool] | None = None
    """Log-likelihood of the scored tokens, and whether each is the most likely one at its position."""


class Engine(Protocol):
    """A loaded model. It outlives what uses it, so that several tasks can share one load."""

    tokenizer: Any
    """The checkpoint's tokenizer, as vLLM loads it."""
    max_model_len: int
    """Maximum tokens of a prompt with its answer."""
    capacity: int
    """Requests that it takes at once: more than it computes at once."""

    def finished(self, asks: Iterable[Ask], at_once: int | None = None) -> Generator[Finished]:
        """Yield each result when it is there. Requests are taken from ``asks`` when it can take them.

        ``at_once`` limits the requests in the engine (default: more than it computes at once). Close the iterator to
        drop what is not finished.
        """


class VllmEngine:
    """An engine of vLLM in this process."""

    def __init__(self, llm: LLM, tokenizer: Any, lora: LoRARequest | None) -> None:
        """Take a loaded ``llm`` and the adapter that it applies to each request."""
        self.tokenizer = tokenizer
        self.max_model_len = int(llm.model_config.max_model_len)
        self._engine, self._lora = llm.llm_engine, lora
        self.capacity = AHEAD * int(self._engine.vllm_config.scheduler_config.max_num_seqs)

    def finished(self, asks: Iterable[Ask], at_once: int | None = None) -> Generator[Finished]:
        """See ``Engine``."""
        coming = iter(asks)
        scored: dict[str, int | None] = {}
        try:
            self._add(islice(coming, at_once or self.capacity), scored)
            while scored:
                for output in self._engine.step():
                    if output.finished:
                        yield _finished(output, scored.pop(output.request_id))
                        self._add(islice(coming, 1), scored)
        except BaseException:
            with suppress(Exception):  # the first error counts
                self._engine.abort_request([*scored])
            raise

    def _add(self, asks: Iterable[Ask], scored: dict[str, int | None]) -> None:
        from vllm import TokensPrompt

        for ask in asks:
            prompt = TokensPrompt(prompt_token_ids=ask.token_ids)
            self._engine.add_request(ask.key, prompt, _sampling(ask), lora_request=self._lora)
            scored[ask.key] = ask.scored


def seed_of(seed: int, key: str) -> int:
    """Return the seed of the request ``key`` of a run with ``seed``."""
    return seed_from(f"{seed}:{key}")


def seed_from(text: str) -> int:
    """Return a seed for vLLM that depends on ``text`` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _sampling(ask: Ask) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if ask.scored is None:
        return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **ask.params)
    # vLLM must generate a token after those that it scores.
    return SamplingParams(
        temperature=0,
        max_tokens=1,
        prompt_logprobs=1,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _finished(output: RequestOutput, scored: int | None) -> Finished:
    count = len(output.prompt_token_ids)
    if scored is not None:
        return Finished(output.request_id, count, score=_score(output, scored))
    samples = (
        Sample(one.text, len(one.token_ids), one.finish_reason)
        for one in sorted(output.outputs, key=lambda one: one.index)
    )
    return Finished(output.request_id, count, samples=tuple(samples))


def _score(output: RequestOutput, count: int) -> tuple[float, bool]:
    """Return what ``_parse_logprobs`` of lm_eval 0.4.13 does: of equally likely tokens, the text's own is the first."""
    start = len(output.prompt_token_ids) - count
    value, greedy = 0.0, True
    for token, likely in zip(output.prompt_token_ids[start:], output.prompt_logprobs[start:], strict=True):
        value += likely[token].logprob
        greedy &= likely[token].logprob == max(one.logprob for one in likely.values())
    return value, greedy
