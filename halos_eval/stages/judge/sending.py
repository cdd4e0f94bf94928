"""Send one request to an OpenAI-compatible endpoint until it is answered, and pay for it as seldom as possible."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from halos_eval.errors import Incomplete, JudgeRefused
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.money import tokens_of
from halos_eval.stages.judge.pace import Pace, seconds_to_wait

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger(__name__)

RETRIES = 8  # with exponential back-off: half a minute if each is refused at once
TIMEOUT_RETRIES = 2  # an endpoint may bill a request that nobody waited for
UNREADABLE_RETRIES = 4
RATE_LIMIT_PATIENCE_SECONDS = 900.0
"""How long the endpoint may answer nothing but 429."""
NO_ANSWER = "status 200 with a body that is not a valid answer"


class Sender:
    """Sends requests and repeats them: after 429 whenever the endpoint allows it, after other failures a few times."""

    def __init__(self, endpoint: Endpoint, client: AsyncOpenAI, pace: Pace) -> None:
        self.endpoint = endpoint
        self.client = client
        self.pace = pace
        self.options = endpoint.request_options()
        self.retries = RETRIES if endpoint.client.max_retries is None else endpoint.client.max_retries

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer: its text, the choice, the usage; or the endpoint's error for this prompt alone.

        Raise JudgeRefused for a wrong key or model and a spent quota, and Incomplete if no answer comes.
        """
        failures: dict[str, int] = {}
        while True:
            sent = await self.pace.turn()
            try:
                found = await self._once(request, sent)
            except _Failed as failed:
                failures[failed.kind] = failures.get(failed.kind, 0) + 1
                if failures[failed.kind] > min(self.retries, failed.retries):
                    raise Incomplete(f"{self.endpoint.place}: {failed}") from None
                await asyncio.sleep(failed.wait if failed.wait is not None else _back_off(sum(failures.values())))
                continue
            if found is not None:
                self.pace.answered()
                return found

    async def _once(self, request: dict[str, Any], sent: float) -> dict[str, Any] | None:
        """Return the answer; None after a 429. Raise _Failed, JudgeRefused, Incomplete."""
        import openai

        try:
            reply = await self._post(request)
        except openai.APIConnectionError as error:
            raise self._no_answer(error) from None
        except openai.RateLimitError as error:
            self._rate_limited(error, sent)
            return None
        except openai.APIStatusError as error:
            return self._status(error, request)
        except (json.JSONDecodeError, openai.APIResponseValidationError):
            raise _Failed("body", NO_ANSWER, UNREADABLE_RETRIES) from None  # such as a proxy's page
        try:
            return _read(reply)
        except (AttributeError, IndexError, TypeError):
            said = getattr(reply, "error", None)  # of a gateway that has status 200 for its models' errors
        if isinstance(said, dict) and said.get("code") == 429:
            self._throttle(sent, None, str(said))
            return None
        raise _Failed(
            "body", f"{NO_ANSWER}: {self.endpoint.hide(str(said))}" if said else NO_ANSWER, UNREADABLE_RETRIES
        )

    async def _post(self, request: dict[str, Any]) -> Any:
        """Return the reply. ``chat.completions.create`` takes a fifth more CPU: it copies each request by its types."""
        from openai.types.chat import ChatCompletion

        body = body_of(request)
        options = self.options | ({"timeout": request["timeout"]} if "timeout" in request else {})
        return await self.client.post("/chat/completions", cast_to=ChatCompletion, body=body, options=options)

    def _no_answer(self, error: Any) -> _Failed:
        """Return the failure of a request without an answer. openai 3.54 takes every lost connection for a timeout."""
        cause = error.__cause__ and (error.__cause__.__cause__ or error.__cause__)
        if isinstance(cause, TimeoutError):
            return _Failed("timeout", f"no answer within {self.client.timeout:g} s", TIMEOUT_RETRIES)
        return _Failed("connection", f"cannot be reached: {self.words(cause or error)}", RETRIES)

    def _rate_limited(self, error: Any, sent: float) -> None:
        if error.code == "insufficient_quota":  # has the status of a rate limit
            raise JudgeRefused(f"the judge's quota is spent: {self.words(error)}. Raise it, then run it again")
        self._throttle(sent, seconds_to_wait(error.response.headers), self.words(error))

    def _throttle(self, sent: float, wait: float | None, words: str) -> None:
        """Slow down. Raise Incomplete if the endpoint refuses everything for too long."""
        if (wait or 0) + time.monotonic() - self.pace.answered_at > RATE_LIMIT_PATIENCE_SECONDS:
            raise Incomplete(f"rate limit, with no answer for {RATE_LIMIT_PATIENCE_SECONDS:.0f} s: {words}")
        self.pace.throttled(sent, wait)

    def _status(self, error: Any, request: dict[str, Any]) -> dict[str, Any]:
        words, status = self.words(error), error.status_code
        if status in {401, 402, 404}:
            raise JudgeRefused(refusal(self.endpoint, request["model"], words))
        if status in {408, 409} or status >= 500:
            raise _Failed("status", words, RETRIES, seconds_to_wait(error.response.headers))
        return {"text": "", "error": words, "usage": (0, 0)}

    def words(self, error: BaseException) -> str:
        """Return an error of the endpoint on one line, without the key."""
        return " ".join(self.endpoint.hide(str(error)).split())[:300]


class _Failed(Exception):
    """A request that may be repeated ``retries`` times."""

    def __init__(self, kind: str, words: str, retries: int, wait: float | None = None) -> None:
        super().__init__(words)
        self.kind, self.retries, self.wait = kind, retries, wait


def refusal(endpoint: Endpoint, model: str, words: str) -> str:
    """Return the message for an endpoint that refuses the key or the model."""
    return (
        f"{endpoint.place} refuses {model}: {words}. Check OPENAI_API_KEY, OPENAI_BASE_URL and the judge's model_name"
    )


def _back_off(failures: int) -> float:
    return float(min(0.5 * 2 ** (failures - 1), 8) * random.uniform(0.75, 1))  # noqa: S311 (no secret)


def body_of(request: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON body of a request, without the options that are the client's."""
    own = {"extra_body", "timeout"}
    return {key: value for key, value in request.items() if key not in own} | (request.get("extra_body") or {})


def read_body(body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer in the JSON body of a reply. Raise AttributeError, LookupError, TypeError if it is none."""
    from openai.types.chat import ChatCompletion

    return _read(ChatCompletion.construct(**body))


def _read(reply: Any) -> dict[str, Any]:
    """Return an answer as alpaca_eval's parsers expect it. Its text is the arguments of a call, if it has one."""
    choice = reply.choices[0]
    message = choice.message
    text = message.content or " "  # as in alpaca_eval: its parsers raise an error for an empty text
    if message.function_call:
        text = message.function_call.arguments
    if message.tool_calls:
        text = message.tool_calls[0].function.arguments
    return {
        **choice.model_dump(),
        "text": text,
        "error": None,
        "usage": tokens_of(reply.usage),
        "model": reply.model,
        "system_fingerprint": reply.system_fingerprint,
    }
