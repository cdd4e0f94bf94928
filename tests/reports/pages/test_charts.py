"""Charts have only scores that may be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from halos_eval.reports.pages import charts
from tests.reports.pages.material import row


@pytest.mark.parametrize(
    "draw",
    [
        lambda rows: charts.history(rows, "alpacaeval_wr"),
        lambda rows: charts.methods(rows, "alpacaeval_wr"),
        charts.win_rates,
    ],
    ids=["history", "methods", "win rates"],
)
def test_a_score_that_is_not_current_is_in_no_chart(draw):
    current = [row(0), row(1)]
    stale = [replace(one, cells={name: replace(cell, current=False) for name, cell in one.cells.items()})
             for one in (row(2), row(4))]  # fmt: skip
    assert draw(current + stale).svg == draw(current).svg
    assert draw(stale) is None
