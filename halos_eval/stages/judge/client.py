"""Requests to an OpenAI-compatible endpoint, many at a time, each paid for once.

The client's own retries (429 with its Retry-After, 5xx, cut connections, time-outs) are used; an answer that is no
JSON is asked for again. Every answer is journaled as it comes, so a killed run asks only for the rest.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, SecretStr

from halos_eval.config.judge import Judge
from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_json
from halos_eval.errors import HalosEvalError, Incomplete, JudgeRefused
from halos_eval.storage.journal import Journal

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import AsyncOpenAI

log = logging.getLogger(__name__)

RETRIES = 8  # of the client, with its exponential back-off: half a minute, if each is refused at once
TIMEOUT_SECONDS = 60.0
UNREADABLE_TRIES = 5
DOWN_AFTER = 8  # requests that fail in a row, each with all its retries: the rest would only take hours to fail


class Endpoint(BaseModel):
    """Where the judge is. The key comes from the environment only, and is never shown."""

    model_config = FROZEN

    base_url: str
    """Root of the API."""
    key: SecretStr
    """Bearer token."""

    @property
    def place(self) -> str:
        """The URL for people and records, without a user and password that it may carry."""
        parts = urlsplit(self.base_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @classmethod
    def from_environment(cls) -> Endpoint:
        """From OPENAI_BASE_URL and OPENAI_API_KEY. Raises JudgeRefused without a key."""
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key:
            raise JudgeRefused("OPENAI_API_KEY is not set: the judge's key comes from the environment only")
        return cls(base_url=os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1", key=SecretStr(key))


class Completions:
    """A completion function for alpaca_eval: called with prompts, gives completions in their order."""

    def __init__(self, endpoint: Endpoint, judge: Judge, journal: Journal, concurrency: int) -> None:
        self.endpoint = endpoint
        self.judge = judge
        self.journal = journal
        self.concurrency = concurrency
        self.asked = 0
        """Pairs that needed a judgement; alpaca_eval calls two equal outputs a draw without asking."""
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.uncounted = False
        """Whether the endpoint did not count the tokens of some answer: then neither they nor the price are known."""
        self.refused: list[str] = []
        """What the endpoint said of single prompts that it would not take (content filter, too long)."""

    def __call__(self, prompts: Sequence[str], **options: Any) -> dict[str, list[Any]]:
        """Complete ``prompts`` (ChatML text); raises JudgeRefused, Incomplete."""
        from alpaca_eval.utils import prompt_to_chatml

        options = {("model" if key == "model_name" else key): value for key, value in options.items()}
        self.asked += len(prompts)
        requests = [{"messages": prompt_to_chatml(prompt.strip()), **options} for prompt in prompts]
        answers = _run_until_sigterm(self._complete(requests))
        for answer in answers:
            if answer["usage"] is None:
                self.uncounted = True
            else:
                self.prompt_tokens += answer["usage"][0]
                self.completion_tokens += answer["usage"][1]
            if answer["error"]:
                self.refused.append(answer["error"])
        return {
            "completions": [answer["text"] for answer in answers],
            "completions_all": answers,
            "price_per_example": [answer["usage"] and self._price(*answer["usage"]) for answer in answers],
            "time_per_example": [None] * len(answers),
        }

    def price_usd(self) -> float | None:
        """The price of all answers, those of earlier runs included; None without a price list, or a count of tokens."""
        return None if self.uncounted else self._price(self.prompt_tokens, self.completion_tokens)

    def tokens(self) -> tuple[int | None, int | None]:
        """Tokens read and made for all answers; None where the endpoint did not count them."""
        return (None, None) if self.uncounted else (self.prompt_tokens, self.completion_tokens)

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        price = self.judge.price_per_million_tokens
        return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6 if price else None

    async def _complete(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        done = self.journal.load()
        keys = [digest_json(request) for request in requests]
        todo = {key: request for key, request in zip(keys, requests, strict=True) if key not in done}
        log.info("%d of %d judgements are there already", len(requests) - len(todo), len(requests))
        limit = asyncio.Semaphore(self.concurrency)
        failures: list[str] = []
        in_a_row = 0
        async with AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.key.get_secret_value(),
            max_retries=RETRIES,
            timeout=TIMEOUT_SECONDS,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [_spent_quota_is_final]}),
        ) as client:

            async def one(key: str, request: dict[str, Any]) -> None:
                nonlocal in_a_row
                async with limit:
                    try:
                        done[key] = await self._ask(client, request)
                    except Incomplete as error:
                        failures.append(str(error))
                        in_a_row += 1
                        if in_a_row >= max(self.concurrency, DOWN_AFTER):
                            raise Incomplete(f"{in_a_row} requests in a row have no answer ({error})") from None
                        return
                in_a_row = 0
                self.journal.add(key, done[key])
                if len(done) % 100 == 0:
                    log.info("judged %d of %d", len(done), len(requests))

            try:
                async with asyncio.TaskGroup() as group:
                    for key, request in todo.items():
                        group.create_task(one(key, request))
            except* HalosEvalError as errors:
                raise errors.exceptions[0] from None
        if failures:
            raise Incomplete(
                f"{len(failures)} of {len(requests)} judgements have no answer ({failures[0]}): run it again"
            )
        return [done[key] for key in keys]

    async def _ask(self, client: AsyncOpenAI, request: dict[str, Any]) -> dict[str, Any]:
        """One answer, or what the endpoint says against this prompt. Raises JudgeRefused, Incomplete."""
        import openai

        for _ in range(UNREADABLE_TRIES):
            try:
                reply = await client.chat.completions.create(**request)
                choice = reply.choices[0]
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise JudgeRefused(
                    f"{self.endpoint.place} refuses {request['model']}: {self._words(error)}. Check OPENAI_API_KEY, "
                    "OPENAI_BASE_URL and the judge's model_name"
                ) from None
            except openai.RateLimitError as error:
                if error.code == "insufficient_quota":
                    raise JudgeRefused(
                        f"the judge's quota is spent: {self._words(error)}. Raise it, then run it again"
                    ) from None
                raise Incomplete(f"rate limit: {self._words(error)}") from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return {"text": "", "error": self._words(error), "usage": (0, 0)}
            except openai.APIConnectionError as error:
                raise Incomplete(f"{self.endpoint.place} cannot be reached: {self._words(error)}") from None
            except openai.APIStatusError as error:
                raise Incomplete(f"{self.endpoint.place}: {self._words(error)}") from None
            except (json.JSONDecodeError, openai.APIResponseValidationError, AttributeError, IndexError, TypeError):
                continue  # 200 with a body that is no answer: a proxy's page
            usage = (reply.usage.prompt_tokens, reply.usage.completion_tokens) if reply.usage else None
            return {**choice.model_dump(), "text": choice.message.content or " ", "error": None, "usage": usage}
        raise Incomplete(f"{self.endpoint.place} gives 200 with a body that is no answer")

    def _words(self, error: Exception) -> str:
        """What the endpoint says; some repeat the key that they refuse."""
        return " ".join(str(error).replace(self.endpoint.key.get_secret_value(), "***").split())[:300]


def _run_until_sigterm(work: Coroutine[Any, Any, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """``asyncio.run``, ended by SIGTERM in order: an exception from a signal handler could hit any task's step."""

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


async def _spent_quota_is_final(response: Response) -> None:
    """Keep the client from trying a spent quota again as if it were a rate limit: both are 429."""
    if response.status_code == 429 and b"insufficient_quota" in await response.aread():
        response.headers["x-should-retry"] = "false"
