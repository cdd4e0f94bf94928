"""Prices of judges: the table that ships, and the cost of an answer."""

from __future__ import annotations

from datetime import date
from functools import cache
from typing import NamedTuple

from pydantic import BaseModel, Field

from halos_eval.config.settings import FROZEN
from halos_eval.config.yaml_file import parse_yaml, validated
from halos_eval.errors import BadInput
from halos_eval.shipped import shipped

TABLE = "prices.yaml"


class Tokens(NamedTuple):
    """The tokens of an answer, as they are kept with it. Answers of earlier versions have the first two only."""

    prompt: int
    """Input tokens, including cached ones."""
    completion: int
    """Output tokens, including those of hidden reasoning."""
    cached: int = 0
    """Input tokens that the vendor had cached."""
    reasoning: int = 0
    """Output tokens of hidden reasoning."""


class Price(BaseModel):
    """The vendor's price list for one model, in US dollars per million tokens."""

    model_config = FROZEN

    input: float = Field(ge=0)
    """Input tokens."""
    output: float = Field(ge=0)
    """Output tokens."""
    cached_input: float | None = Field(None, ge=0)
    """Input tokens that the vendor had cached (default: the price of input)."""
    reasoning: float | None = Field(None, ge=0)
    """Output tokens of hidden reasoning (default: the price of output)."""
    batch: float = Field(0.5, ge=0, le=1)
    """Share of these prices that the same answer costs by the vendor's Batch API; 1 if there is none."""
    as_of: date | None = None
    """Day of the price list."""

    @property
    def less_in_batch(self) -> bool:
        """Whether a batch costs less than single requests."""
        return self.batch < 1 and self.input + self.output > 0

    def usd(self, tokens: Tokens, batch: bool = False) -> float:
        """Return the cost in US dollars."""
        cached = self.input if self.cached_input is None else self.cached_input
        reasoning = self.output if self.reasoning is None else self.reasoning
        dollars = (
            (tokens.prompt - tokens.cached) * self.input
            + tokens.cached * cached
            + (tokens.completion - tokens.reasoning) * self.output
            + tokens.reasoning * reasoning
        ) / 1e6
        return dollars * (self.batch if batch else 1)

    def __str__(self) -> str:
        parts = {"input": self.input, "cached input": self.cached_input, "output": self.output}
        parts["reasoning"] = self.reasoning
        listed = ", ".join(f"{name} {value:g}" for name, value in parts.items() if value is not None)
        return f"{listed} USD per million tokens{f', as of {self.as_of}' if self.as_of else ''}"


class Listed(Price):
    """An entry of the table."""

    snapshots: tuple[str, ...] = ()
    """Dated names of the same model, at the same price."""


class _Table(BaseModel):
    models: dict[str, Listed]


def listed_price(model: str) -> Price | None:
    """Return the price of a model by its exact name or snapshot; None if the table does not have it."""
    return _prices().get(model)


@cache
def _prices() -> dict[str, Price]:
    document = parse_yaml(shipped(TABLE).read_bytes(), TABLE)
    models = validated({"models": document}, _Table, TABLE).models
    prices: dict[str, Price] = {}
    for model, entry in models.items():
        price = Price(**entry.model_dump(exclude={"snapshots"}))
        for name in (model, *entry.snapshots):
            if name in prices:
                raise BadInput(f"{TABLE} has {name} twice; expected one price. Remove one")
            prices[name] = price
    return prices
