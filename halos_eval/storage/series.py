"""Series: rows that were made with the same versions of the evaluation tools, so that they are comparable.

A tool upgrade begins a new series. It neither outdates earlier results nor starts evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.storage import layout
from halos_eval.storage.claims import WAIT, claimed, this_process
from halos_eval.storage.records import read_model, write_model


class Series(BaseModel):
    """One set of versions of the evaluation tools."""

    model_config = FROZEN

    number: int
    """1 for the first series of a store."""
    tools: dict[str, str]
    """Version of each tool, by package."""
    began: datetime
    """UTC time of the first plan with these versions."""

    def __str__(self) -> str:
        versions = ", ".join(f"{package} {version}" for package, version in sorted(self.tools.items()))
        return f"series {self.number} since {self.began:%Y-%m-%d} ({versions})"


class AllSeries(BaseModel):
    """All series of a store."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    series: tuple[Series, ...] = ()
    """In the order in which they began."""

    def of(self, tools: Mapping[str, str]) -> Series:
        """Return the series with these tools, or the one that would be next."""
        known = next((one for one in self.series if one.tools == tools), None)
        return known or Series(number=len(self.series) + 1, tools=dict(tools), began=datetime.now(UTC))

    def with_(self, tools: Mapping[str, str]) -> AllSeries:
        """Return all series, including the one with these tools."""
        one = self.of(tools)
        return self if one in self.series else AllSeries(series=(*self.series, one))


def read_series(root: str) -> AllSeries:
    """Return the series of the store ``root``. Raise StoreError, because without them earlier results are not found."""
    return read_model(layout.series_url(root), AllSeries) or AllSeries()


def save_series(root: str, tools: Mapping[str, str]) -> None:
    """Add the series with these tools to the store, unless it is there. Raise StoreError, Busy."""
    if any(one.tools == tools for one in read_series(root).series):
        return
    url = layout.series_url(root)
    with claimed(layout.claims_of(url), this_process(), WAIT) as confirm:
        more = read_series(root).with_(tools)  # another process may have added one just now
        confirm()
        write_model(url, more)
