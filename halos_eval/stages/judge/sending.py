"""Send one request to an OpenAI-compatible endpoint until it is answered, and pay for it as seldom as possible."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any

from halos_eval.errors import Incomplete, JudgeRefused
from halos_eval.stages.judge.connection import Connection, NoReply, Reply
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.money import tokens_of
from halos_eval.stages.judge.pace import Pace, seconds_to_wait

log = logging.getLogger(__name__)

RETRIES = 8  # with exponential back-off: half a minute if each is refused at once
TIMEOUT_RETRIES = 2  # an endpoint may bill a request that nobody waited for
UNREADABLE_RETRIES = 4
RATE_LIMIT_PATIENCE_SECONDS = 900.0
"""How long the endpoint may answer nothing but 429, and ask to wait."""
NO_ANSWER = "status 200 with a body that is not a valid answer"


class Sender:
    """Sends requests and repeats them: after 429 whenever the endpoint allows it, after other failures a few times."""

    def __init__(self, connection: Connection, pace: Pace) -> None:
        self.connection = connection
        self.endpoint = connection.endpoint
        self.pace = pace
        retries = self.endpoint.client.max_retries
        self.retries = RETRIES if retries is None else retries

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
                if failed.wait is not None and failed.wait > RATE_LIMIT_PATIENCE_SECONDS:
                    raise Incomplete(f"{self.endpoint.place} asks to wait {failed.wait:.0f} s: {failed}") from None
                await asyncio.sleep(failed.wait if failed.wait is not None else _back_off(sum(failures.values())))
                continue
            if found is not None:
                self.pace.answered()
                return found

    async def _once(self, request: dict[str, Any], sent: float) -> dict[str, Any] | None:
        """Return the answer; None after a 429. Raise _Failed, JudgeRefused, Incomplete."""
        try:
            reply = await self.connection.post(body_of(request), request.get("timeout"))
        except NoReply as error:
            if error.timeout:
                raise _Failed("timeout", str(error), TIMEOUT_RETRIES) from None
            raise _Failed("connection", f"cannot be reached: {self.words(str(error))}", RETRIES) from None
        if reply.status == 429:
            self._rate_limited(reply, sent)
            return None
        if reply.status >= 400:
            return self._status(reply, request)
        said = None
        try:
            body = reply.body()
            said = body.get("error")  # of a gateway that has status 200 for its models' errors
            return read_body(body)
        except (AttributeError, LookupError, TypeError, ValueError):
            pass  # such as a proxy's page
        if isinstance(said, dict) and said.get("code") == 429:
            self._throttle(sent, None, str(said))
            return None
        raise _Failed("body", f"{NO_ANSWER}: {self.words(str(said))}" if said else NO_ANSWER, UNREADABLE_RETRIES)

    def _rate_limited(self, reply: Reply, sent: float) -> None:
        code, message = reply.error()
        if code == "insufficient_quota":  # has the status of a rate limit
            raise JudgeRefused(f"the judge's quota is spent: {self.words(message)}. Raise it, then run it again")
        self._throttle(sent, seconds_to_wait(reply.headers), self.words(message))

    def _throttle(self, sent: float, wait: float | None, words: str) -> None:
        """Slow down. Raise Incomplete if the endpoint refuses everything for too long."""
        if (wait or 0) + time.monotonic() - self.pace.answered_at > RATE_LIMIT_PATIENCE_SECONDS:
            raise Incomplete(f"rate limit, with no answer for {RATE_LIMIT_PATIENCE_SECONDS:.0f} s: {words}")
        self.pace.throttled(sent, wait)

    def _status(self, reply: Reply, request: dict[str, Any]) -> dict[str, Any]:
        words = self.words(reply.error()[1])
        if reply.status in {401, 402, 404}:
            raise JudgeRefused(refusal(self.endpoint, request["model"], words))
        if reply.status in {408, 409} or reply.status >= 500:
            raise _Failed("status", words, RETRIES, seconds_to_wait(reply.headers))
        return {"text": "", "error": words, "usage": (0, 0)}

    def words(self, text: str) -> str:
        """Return an error of the endpoint on one line, without the key."""
        return " ".join(self.endpoint.hide(text).split())[:300]


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
    """Return the answer in the JSON body of a reply, as alpaca_eval's parsers expect it.

    Its text is the arguments of a call, if it has one. Raise AttributeError, LookupError, TypeError if it is none.
    """
    choice = body["choices"][0]
    message = choice["message"]
    text = message.get("content") or " "  # as in alpaca_eval: its parsers raise an error for an empty text
    if message.get("function_call"):
        text = message["function_call"]["arguments"]
    if message.get("tool_calls"):
        text = message["tool_calls"][0]["function"]["arguments"]
    if not isinstance(text, str) or not isinstance(choice.get("logprobs") or {}, dict):
        raise TypeError("the answer has another form than documented")
    return {
        "finish_reason": None,
        "logprobs": None,
        **choice,
        "text": text,
        "error": None,
        "usage": tokens_of(body.get("usage")),
        "model": _text(body.get("model")),
        "system_fingerprint": _text(body.get("system_fingerprint")),
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
