"""Doubles of vLLM's engine, and of this project's own."""

from __future__ import annotations

import math
from types import SimpleNamespace

from halos_eval.stages.engine import Finished, Sample


class Answering:
    """An engine that answers with the reversed prompt, and scores a text by its length. It dies after ``patience``."""

    def __init__(self, tokenizer, max_model_len=1000, patience=math.inf):
        self.tokenizer, self.max_model_len, self.patience = tokenizer, max_model_len, patience
        self.asked, self.at_once, self.capacity = [], None, 4

    def finished(self, asks, at_once=None):
        """Finish the requests from the last to the first: no order is promised."""
        self.at_once = at_once
        for ask in reversed([*asks]):
            if self.patience == 0:
                raise SystemExit(143)
            self.patience -= 1
            self.asked.append(ask)
            yield self.answer(ask)

    def answer(self, ask):
        """What the model makes of one request."""
        count = len(ask.token_ids)
        if ask.scored is not None:
            return Finished(ask.key, count, score=(-float(count), ask.scored % 2 == 0))
        whole = self.tokenizer.decode(ask.token_ids[::-1])
        text = whole[: ask.params["max_tokens"]]
        finish = "length" if len(whole) > len(text) else "stop"
        for stop in ask.params["stop"]:
            if stop in text:
                text, finish = text.partition(stop)[0], "stop"
        return Finished(ask.key, count, samples=(Sample(text, len(text), finish),))


class Steps:
    """vLLM's ``LLMEngine``: a request ends after as many steps as its first token says; at most ``seqs`` at once."""

    def __init__(self, seqs):
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=seqs))
        self.requests, self.aborted = {}, []
        self.computed = []
        """Number of requests that each step computed."""
        self.waiting = []
        """Number of requests that each step left waiting."""

    def add_request(self, key, prompt, params, lora_request):
        assert key not in self.requests
        ids = prompt["prompt_token_ids"]
        self.requests[key] = SimpleNamespace(left=ids[0], ids=ids, params=params, lora=lora_request)

    def abort_request(self, keys):
        self.aborted += keys
        for key in keys:
            del self.requests[key]

    def step(self):
        running = dict([*self.requests.items()][: self.vllm_config.scheduler_config.max_num_seqs])
        self.computed.append(len(running))
        self.waiting.append(len(self.requests) - len(running))
        ended = []
        for key, request in running.items():
            request.left -= 1
            if request.left <= 0:
                del self.requests[key]
                ended.append(self.output(key, request))
        return ended

    def output(self, key, request):
        """What vLLM returns for a finished request: the second token is always the most likely one."""
        likely = [
            {token: SimpleNamespace(logprob=-0.5), 1: SimpleNamespace(logprob=-0.25)} for token in request.ids[1:]
        ]
        samples = [SimpleNamespace(index=n, text=f"{key}{n}", token_ids=[5] * n, finish_reason="stop") for n in (1, 0)]
        return SimpleNamespace(
            request_id=key,
            finished=True,
            prompt_token_ids=request.ids,
            prompt_logprobs=[None, *likely],
            outputs=samples,
        )
