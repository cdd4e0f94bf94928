"""The limit on the cost of a judge: no request is sent if the next answers could exceed it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from math import ceil
from typing import Any

from halos_eval.config.judge import Judge
from halos_eval.config.prices import Tokens
from halos_eval.errors import BadInput, CostLimit

CHARACTERS_PER_TOKEN = 4
"""Of English text, for the estimate before the first answer."""
UNLIMITED_OUTPUT = 1000
"""Expected output tokens of a judge without a limit of them, before the first answer."""
MARGIN = 1.25
"""An answer may cost this many times what is expected of it without exceeding the limit."""


class Budget:
    """Spent money of a run, and the expected cost of its next requests, in US dollars.

    The expectation of a request is from its length and the answers so far: their input tokens for each character, and
    their mean output.
    """

    def __init__(self, judge: Judge, limit: float | None = None) -> None:
        """Raise BadInput for a limit without prices."""
        if limit is not None and judge.price is None:
            raise BadInput(f"--max-cost needs the judge's prices, which are {judge.prices}. Or omit --max-cost")
        self.price, self.limit = judge.price, limit
        self.spent = 0.0
        """Price of the answers that this run requested, in all its attempts."""
        self.stopped = False
        """Whether a request was not sent because of the limit."""
        most = [judge.completions_kwargs.get(name) for name in ("max_completion_tokens", "max_tokens")]
        self._first_output = next((one for one in most if isinstance(one, int)), UNLIMITED_OUTPUT)
        self._reserved = 0.0
        self._characters = self._answers = 0
        self._input = self._output = 0
        self._settled = asyncio.Condition()

    def learn(self, request: dict[str, Any], answer: dict[str, Any], spent: bool = True) -> None:
        """Note an answer, and add its price unless another run has ``spent`` it."""
        price = self.expected(request, bool(answer.get("batch")))
        if answer["usage"] and not answer["error"]:
            tokens = Tokens(*answer["usage"])
            self._characters += _length(request)
            self._answers += 1
            self._input += tokens.prompt
            self._output += tokens.completion
        if self.price and answer["usage"]:
            price = self.price.usd(Tokens(*answer["usage"]), bool(answer.get("batch")))
        if spent:
            self.spent += price

    def expected(self, request: dict[str, Any], batch: bool = False) -> float:
        """Return the expected price of a request; 0 without prices."""
        if self.price is None:
            return 0
        share = self._input / self._characters if self._characters else 1 / CHARACTERS_PER_TOKEN
        output = self._output / self._answers if self._answers else self._first_output
        return self.price.usd(Tokens(ceil(_length(request) * share), ceil(output)), batch)

    def take(self, request: dict[str, Any], batch: bool = False) -> float | None:
        """Reserve the price of a request and return it; None, and ``stopped``, if that could exceed the limit."""
        if self.limit is None:
            return 0
        price = MARGIN * self.expected(request, batch)
        if self.stopped or self.spent + self._reserved + price > self.limit:
            self.stopped = True
            return None
        self._reserved += price
        return price

    async def reserve(self, request: dict[str, Any]) -> float | None:
        """Do as ``take``, but first wait for answers in flight, which may cost less than was reserved for them."""
        if self.limit is None:
            return 0
        async with self._settled:
            await self._settled.wait_for(lambda: self.stopped or not self._reserved or self._fits(request))
            return self.take(request)

    def _fits(self, request: dict[str, Any]) -> bool:
        return self.limit is None or self.spent + self._reserved + MARGIN * self.expected(request) <= self.limit

    async def release(self, reserved: float) -> None:
        """End the reservation of a request that was answered, or that failed."""
        if self.limit is not None:
            async with self._settled:
                # Without an exact 0 at the end, the sum of many reservations would wait for nothing.
                self._reserved = max(round(self._reserved - reserved, 12), 0.0)
                self._settled.notify_all()

    def so_far(self) -> str:
        """Return what was spent, for the log; nothing without prices."""
        return f", {self.spent:.2f} USD so far" if self.price else ""

    def estimate(self, requests: Iterable[dict[str, Any]], batch: bool = False) -> str:
        """Return the expected cost of ``requests`` for the log, and how it was estimated."""
        if self.price is None:
            return "their cost is unknown"
        by = "the answers so far" if self._answers else f"{CHARACTERS_PER_TOKEN} characters for each token"
        return f"estimated {sum(self.expected(one, batch) for one in requests):.2f} USD, by {by}"

    def exceeded(self, left: list[dict[str, Any]], total: int) -> CostLimit:
        """Return the error for a run that was stopped with requests ``left`` of ``total``."""
        rest = sum(map(self.expected, left))
        enough = ceil((self.spent + MARGIN * rest) * 100) / 100
        return CostLimit(
            f"stopped at the limit of {self.limit:g} USD: {self.spent:.4f} USD are spent, and {len(left)} of {total} "
            f"judgements are left, for about {rest:.4f} USD. Finished ones are kept. Raise --max-cost to "
            f"{enough:.2f} (in Airflow, limits.run in the policy file, which all judges of a run share); then run it "
            "again"
        )


def _length(request: dict[str, Any]) -> int:
    return sum(len(str(message.get("content") or "")) for message in request["messages"])
