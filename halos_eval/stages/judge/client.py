"""A completion function for alpaca_eval that sends many requests at a time, and pays for each once.

Each answer is kept when it arrives, by its request. The first few are read before the others are requested.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from halos_eval.config.judge import Judge
from halos_eval.digests import digest_json
from halos_eval.errors import EvaluationFailed, HalosEvalError, Incomplete, JudgeRefused
from halos_eval.stages.judge.answers import Answers
from halos_eval.stages.judge.batches import Batches
from halos_eval.stages.judge.budget import Budget
from halos_eval.stages.judge.connection import Connection
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.money import Bill
from halos_eval.stages.judge.pace import Pace
from halos_eval.stages.judge.sending import Sender
from halos_eval.stages.judge.vendor import Vendor
from halos_eval.storage import filesystem
from halos_eval.storage.claims import claimed

log = logging.getLogger(__name__)

DOWN_AFTER = 8  # requests in a row that fail after all retries; the remaining ones would take hours to fail
FIRST = 5  # answers that are read before the others are requested


class Completions:
    """The judge's completions. ``read`` tells whether the judge's parser can read an answer."""

    def __init__(
        self,
        endpoint: Endpoint,
        judge: Judge,
        answers: Answers,
        concurrency: int,
        timeout: float,
        read: Callable[[dict[str, Any]], bool] = lambda answer: True,
        max_cost: float | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.judge = judge
        self.answers = answers
        self.concurrency = min(concurrency, judge.client.parallel or concurrency)
        self.timeout = timeout
        self.read = read
        self.received: list[dict[str, Any]] = []
        """The answers."""
        self.asked = 0
        """Pairs that needed a judgement; for two equal outputs alpaca_eval counts a draw without a request."""
        self.bill = Bill(judge)
        """What the answers cost."""
        self.budget = Budget(judge, max_cost)
        """Limit on the cost."""
        self.batch_owner: str | None = None
        """The owner of this run's batches, see `halos_eval.storage.claims`; None: the Batch API is not used."""
        self.kept = 0
        """Pairs that an earlier run has judged."""
        self.refused: list[str] = []
        """The endpoint's errors for single prompts that it rejected (content filter, too long)."""
        self.cut = 0
        """Answers without text that ended at the limit of tokens."""
        self.snapshots: set[str] = set()
        """The model names in the answers, with the system's fingerprint if there is one."""
        self.models: set[str] = set()
        """The model names in the answers. A vendor's name without a date may stand for another one next month."""

    def __call__(self, prompts: Sequence[list[dict[str, str]]], **options: Any) -> dict[str, list[Any]]:
        """Return completions of ``prompts`` (messages).

        Raise JudgeRefused, Incomplete, CostLimit, Waiting, EvaluationFailed.
        """
        options = {("model" if key == "model_name" else key): value for key, value in options.items()}
        self.asked += len(prompts)
        requests = [{"messages": messages, **options} for messages in prompts]
        self.received = answers = _run_until_sigterm(self._complete(requests, options))
        prices = [self._count(answer) for answer in answers]
        return {
            "completions": [answer["text"] for answer in answers],
            "completions_all": answers,
            "price_per_example": prices,
            "time_per_example": [None] * len(answers),
        }

    def _count(self, answer: dict[str, Any]) -> float | None:
        """Count an answer and return its price."""
        price = self.bill.add(answer)
        if answer["error"]:
            self.refused.append(answer["error"])
            return price
        if not answer["text"].strip() and answer.get("finish_reason") == "length":
            self.cut += 1
        if answer.get("model"):
            self.models.add(answer["model"])
            self.snapshots.add("/".join(filter(None, (answer["model"], answer.get("system_fingerprint")))))
        return price

    async def _complete(self, requests: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
        keys = [digest_json(request) for request in requests]
        # Two endpoints may have different models of one name.
        done = self.answers.load({**options, "endpoint": self.endpoint.place}, keys)
        by_key = dict(zip(keys, requests, strict=True))
        todo = {key: request for key, request in by_key.items() if key not in done}
        for key in by_key.keys() & done.keys():
            self.budget.learn(by_key[key], done[key], spent=key in self.answers.own)
        self.kept = len(requests) - len(todo)
        log.info("%d of %d pairs already have judgements", self.kept, len(requests))
        if todo:
            log.info("%d requests to send: %s", len(todo), self.budget.estimate(todo.values(), bool(self.batch_owner)))
        async with Connection(self.endpoint, self.timeout) as connection:
            run = _Run(self, Sender(connection, Pace(self.concurrency)), done, len(requests))
            try:
                if not any(map(self.read, done.values())):
                    await run.request(dict(list(todo.items())[: max(FIRST - len(done), 0)]))
                    if run.failures and not done:
                        raise Incomplete(
                            f"none of the first requests was answered ({run.failures[0]}). Check that the judge's URL "
                            "is the root of an OpenAI-compatible API (https://api.openai.com/v1), or run it again"
                        )
                    self._check(list(done.values()))
                if self.batch_owner:
                    left = {key: request for key, request in todo.items() if key not in done}
                    with claimed(filesystem.join(self.answers.batches, "claims"), self.batch_owner):
                        async with self.endpoint.account(self.timeout) as client:
                            await self._batches(client, run, by_key).advance(left)
                await run.request({key: request for key, request in todo.items() if key not in done})
            finally:
                self.answers.save()
        missing = [request for key, request in todo.items() if key not in done]
        if missing and self.budget.stopped:
            raise self.budget.exceeded(missing, len(requests))
        if missing:
            raise Incomplete(
                f"{len(missing)} of {len(requests)} judgements are missing ({run.failures[0]}). Run it again"
            )
        return [done[key] for key in keys]

    def _batches(self, client: Any, run: _Run, requests: dict[str, dict[str, Any]]) -> Batches:
        def keep(answers: dict[str, dict[str, Any]]) -> None:
            for key in answers.keys() - run.done.keys():
                run.add(key, requests[key], answers[key])
            self.answers.save()

        return Batches(self.answers.batches, Vendor(self.endpoint, client), requests, self.budget, keep)

    def _check(self, first: list[dict[str, Any]]) -> None:
        """Raise JudgeRefused or EvaluationFailed if none of the first answers can be read."""
        if not first or any(map(self.read, first)):
            return
        if errors := [answer["error"] for answer in first if answer["error"]]:
            raise JudgeRefused(
                f"the first {len(errors)} requests were refused: {errors[0]}. Check the key, the judge's model_name "
                "and its request options, such as max_completion_tokens instead of max_tokens for a reasoning model"
            )
        raise EvaluationFailed(unreadable(self.judge, first))


class _Run:
    """The requests of one run, of which ``done`` collects the answers and ``failures`` the reasons without one."""

    def __init__(self, owner: Completions, sender: Sender, done: dict[str, Any], total: int) -> None:
        self.owner, self.sender, self.done, self.total = owner, sender, done, total
        self.failures: list[str] = []
        self._in_a_row = 0

    async def request(self, todo: dict[str, dict[str, Any]]) -> None:
        """Send the requests. Raise JudgeRefused, and Incomplete if the endpoint is down."""
        try:
            async with asyncio.TaskGroup() as group:
                for key, request in todo.items():
                    group.create_task(self._one(key, request))
        except* HalosEvalError as errors:
            raise errors.exceptions[0] from None
        except* Exception as errors:
            raise errors.exceptions[0] from errors

    async def _one(self, key: str, request: dict[str, Any]) -> None:
        budget = self.owner.budget
        async with self.sender.pace.slot():
            reserved = await budget.reserve(request)
            if reserved is None:
                return
            try:
                answer = await self.sender.answer(request)
            except Incomplete as error:
                self._failed(error)
                return
            else:
                self.add(key, request, answer)
            finally:
                await budget.release(reserved)
        self._in_a_row = 0
        if len(self.done) % 100 == 0:
            log.info("judged %d of %d%s", len(self.done), self.total, budget.so_far())

    def add(self, key: str, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Add an answer, and keep it for later runs if they can use it."""
        self.owner.budget.learn(request, answer)
        self.done[key] = answer
        if not answer["error"] and not (request.get("logprobs") and without_probabilities(answer)):
            self.owner.answers.add(key, answer)

    def _failed(self, error: Incomplete) -> None:
        self.failures.append(str(error))
        self._in_a_row += 1
        if self._in_a_row >= max(self.owner.concurrency, DOWN_AFTER):
            raise Incomplete(
                f"{self._in_a_row} requests in a row failed ({error}). Run it again once the endpoint works"
            ) from None


def without_probabilities(answer: dict[str, Any]) -> bool:
    """Return whether an answer has no log-probabilities, so that no parser of them can ever read it."""
    return not (answer.get("logprobs") or {}).get("content")


def unreadable(judge: Judge, answers: Sequence[dict[str, Any]]) -> str:
    """Return why no answer could be parsed, with the remedy."""
    parser = judge.fn_completion_parser
    start = f"{parser} could parse no answer of {judge.model}"
    if judge.completion_key == "completions_all" and all(map(without_probabilities, answers)):
        return (
            f"{start}. Check that the endpoint returns log-probabilities; a judge without them needs another parser, "
            "such as regex_parser"
        )
    said, ended = next(((answer["text"], answer.get("finish_reason")) for answer in answers), ("", None))
    if not said.strip():
        return f"{start}: it has no text and ended by {ended}. A reasoning model needs a larger max_completion_tokens"
    return (
        f"{start}, such as {said[:80]!r}. The answers are kept: fix the judge's parser, or request new ones with "
        "--force. A local judge needs structured outputs (see the judge demo)"
    )


def _run_until_sigterm(work: Coroutine[Any, Any, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Run ``work``, and cancel it on SIGTERM.

    The signal handler raises nothing itself, because its exception could interrupt any task.
    """

    async def cancellable() -> list[dict[str, Any]]:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    before = signal.getsignal(signal.SIGTERM)
    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)
