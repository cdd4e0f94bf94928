"""The page of one checkpoint: its scores, what is missing, its cost, and links to its samples and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from halos_eval.reports.pages import document
from halos_eval.reports.pages.leaderboard import interval_of, reasons_of, score_columns
from halos_eval.reports.ranking import cell_of
from halos_eval.reports.results import Row


def page(
    suite: str, row: Row, samples: Mapping[str, str], damaged: Mapping[str, str], pairs: Sequence[tuple[str, str, str]]
) -> bytes:
    """Return the page of a row.

    ``samples`` has the path of the first page of samples by title, ``damaged`` why other titles have none, and
    ``pairs`` the other checkpoint, the verdict and the path of each comparison.
    """
    columns = score_columns([row])
    return document.render(
        "checkpoint.html.jinja",
        suite=suite,
        row=row,
        scores=[(column, cell_of(row, column), interval_of(cell_of(row, column))) for column in columns],
        reasons=reasons_of(row, columns),
        samples=samples,
        damaged=damaged,
        pairs=pairs,
    )
