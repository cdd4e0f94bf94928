"""Send requests to an OpenAI-compatible endpoint, many at a time, and pay for each once.

The OpenAI client retries 429 (after Retry-After), 5xx, dropped connections and time-outs. This module also retries
answers that are not valid JSON. Each answer is journaled when it arrives, so a resumed run requests only the others.
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

RETRIES = 8  # of the client, with exponential back-off: half a minute if each is refused at once
TIMEOUT_SECONDS = 60.0
UNREADABLE_TRIES = 5
DOWN_AFTER = 8  # requests in a row that fail after all retries; the remaining ones would take hours to fail


class Endpoint(BaseModel):
    """The judge's URL and key. The key comes only from the environment, and is never logged."""

    model_config = FROZEN

    base_url: str
    """Root of the API."""
    key: SecretStr
    """Bearer token."""

    @property
    def place(self) -> str:
        """The URL for messages and records, without a user name and password that it may contain."""
        parts = urlsplit(self.base_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @classmethod
    def from_environment(cls) -> Endpoint:
        """Return the endpoint of OPENAI_BASE_URL and OPENAI_API_KEY. Raise JudgeRefused without a key."""
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key:
            raise JudgeRefused("OPENAI_API_KEY is not set; the judge's key is read only from this variable. Set it")
        return cls(base_url=os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1", key=SecretStr(key))


class Completions:
    """A completion function for alpaca_eval: takes prompts, returns completions in the same order."""

    def __init__(self, endpoint: Endpoint, judge: Judge, journal: Journal, concurrency: int) -> None:
        self.endpoint = endpoint
        self.judge = judge
        self.journal = journal
        self.concurrency = concurrency
        self.asked = 0
        """Pairs that needed a judgement; for two equal outputs alpaca_eval counts a draw without a request."""
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.uncounted = False
        """Whether some answer came without a token count, so that the total and the price are unknown."""
        self.refused: list[str] = []
        """The endpoint's errors for single prompts that it rejected (content filter, too long)."""

    def __call__(self, prompts: Sequence[str], **options: Any) -> dict[str, list[Any]]:
        """Return completions of ``prompts`` (ChatML text). Raise JudgeRefused, Incomplete."""
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
        """Return the price of all answers, also of earlier runs; None without a price list or token counts."""
        return None if self.uncounted else self._price(self.prompt_tokens, self.completion_tokens)

    def tokens(self) -> tuple[int | None, int | None]:
        """Return prompt and completion tokens of all answers; None if the endpoint did not count them."""
        return (None, None) if self.uncounted else (self.prompt_tokens, self.completion_tokens)

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        price = self.judge.price_per_million_tokens
        return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6 if price else None

    async def _complete(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        done = self.journal.load()
        keys = [digest_json(request) for request in requests]
        todo = {key: request for key, request in zip(keys, requests, strict=True) if key not in done}
        log.info("%d of %d pairs already have judgements", len(requests) - len(todo), len(requests))
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
                            raise Incomplete(
                                f"{in_a_row} requests in a row failed ({error}). Run it again once the endpoint works"
                            ) from None
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
            raise Incomplete(f"{len(failures)} of {len(requests)} judgements are missing ({failures[0]}). Run it again")
        return [done[key] for key in keys]

    async def _ask(self, client: AsyncOpenAI, request: dict[str, Any]) -> dict[str, Any]:
        """Return one answer, or the endpoint's error for this prompt. Raise JudgeRefused, Incomplete."""
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
                continue  # status 200 with a body that is not an answer, such as a proxy's page
            usage = (reply.usage.prompt_tokens, reply.usage.completion_tokens) if reply.usage else None
            return {**choice.model_dump(), "text": choice.message.content or " ", "error": None, "usage": usage}
        raise Incomplete(f"{self.endpoint.place} returned status 200 with a body that is not a valid answer")

    def _words(self, error: Exception) -> str:
        """Return the endpoint's error without the key, because some endpoints repeat the key that they refuse."""
        return " ".join(str(error).replace(self.endpoint.key.get_secret_value(), "***").split())[:300]


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


async def _spent_quota_is_final(response: Response) -> None:
    """Stop the client from retrying a spent quota like a rate limit: both have status 429."""
    if response.status_code == 429 and b"insufficient_quota" in await response.aread():
        response.headers["x-should-retry"] = "false"
