"""The cost of a judge's answers, for the record."""

from __future__ import annotations

from typing import Any

from halos_eval.config.judge import Judge
from halos_eval.config.prices import Tokens

MOST = 10**9
"""Tokens of one answer, from which on a count is an error of the endpoint."""


def tokens_of(usage: dict[str, Any] | None) -> Tokens | None:
    """Return the tokens that an endpoint counted; None if it counted none.

    Hidden reasoning is a part of the completion, except at vendors whose total shows that it comes on top. Raise
    LookupError, TypeError for a usage of another form.
    """
    if usage is None:
        return None
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    if not all(isinstance(count, int | float) and 0 <= count < MOST for count in (prompt, completion)):
        raise TypeError("the usage has no counts of tokens")
    prompt, completion = int(prompt), int(completion)
    if reasoning and usage.get("total_tokens") == prompt + completion + reasoning:
        completion += reasoning
    return Tokens(prompt, completion, min(cached, prompt), min(reasoning, completion))


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    count = (usage.get(group) or {}).get(name)
    return count if isinstance(count, int) and 0 < count < MOST else 0


class Bill:
    """What the answers of a run cost, including answers that earlier runs paid for."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.tokens = Tokens(0, 0)
        self.dollars = 0.0
        self.uncounted = False
        """Whether some answer came without a token count, so that totals and price are unknown."""

    def add(self, answer: dict[str, Any]) -> float | None:
        """Add an answer; return its price."""
        if answer["usage"] is None:
            self.uncounted = True
            return None
        tokens = Tokens(*answer["usage"])
        self.tokens = Tokens(*map(sum, zip(self.tokens, tokens, strict=True)))
        if self.judge.price is None:
            return None
        price = self.judge.price.usd(tokens, bool(answer.get("batch")))
        self.dollars += price
        return price

    def total(self) -> float | None:
        """Return the price of all answers in US dollars; None without prices or token counts."""
        return None if self.uncounted or self.judge.price is None else self.dollars

    def counted(self) -> tuple[int | None, int | None]:
        """Return prompt and completion tokens; None if the endpoint did not count them."""
        return (None, None) if self.uncounted else (self.tokens.prompt, self.tokens.completion)

    def details(self) -> dict[str, float]:
        """Return the cached and the reasoning tokens, if there are any."""
        counts = {"cached_prompt_tokens": self.tokens.cached, "reasoning_tokens": self.tokens.reasoning}
        return {} if self.uncounted else {name: float(count) for name, count in counts.items() if count}

    def prices(self) -> str:
        """Return the prices for the record; or why the price is unknown."""
        return "unknown: the endpoint counts no tokens" if self.uncounted else self.judge.prices
