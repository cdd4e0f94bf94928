"""The scores that may stand beside those of other checkpoints: ranks, baselines, charts and MLflow use only these.

A score that is not current was measured with another definition, for example against a weaker reference, or on other
weights. Tables and pages show it with its reason, see `cell_of`.
"""

from __future__ import annotations

from collections.abc import Sequence

from halos_eval.reports.results import Cell, Row

AVERAGE = "avg"
RANKED = (AVERAGE, "alpacaeval_lcwr", "alpacaeval_wr")
"""Columns by which checkpoints are ranked: the first that one of them has, for all of them."""


def cell_of(row: Row, column: str) -> Cell | None:
    """Return what a row shows in a column, also the average; None if there is no score."""
    if column == AVERAGE:
        return None if row.average is None else Cell(row.average, row.average_stderr)
    return row.cells.get(column)


def score_of(row: Row, column: str) -> Cell | None:
    """Return the current score of a row in a column, also the average; None if it has none."""
    cell = cell_of(row, column)
    return cell if cell and cell.current else None


def scores_of(row: Row) -> dict[str, Cell]:
    """Return all current scores of a row by column, and the average as ``avg``."""
    return {column: cell for column in (*row.cells, AVERAGE) if (cell := score_of(row, column))}


def ranked_by(rows: Sequence[Row]) -> str | None:
    """Return the column by which the rows are ranked; None if no row has one of them."""
    return next((column for column in RANKED if any(score_of(row, column) for row in rows)), None)


def best(rows: Sequence[Row]) -> Row | None:
    """Return the row with the highest score in the newest series that has one; None if no row has one.

    All rows are compared by one column, because an average is a fraction and a win rate a percentage.
    """
    scored = [row for row in rows if ranked_by([row])]
    newest = max((row.series or 0 for row in scored), default=0)
    rows = [row for row in scored if (row.series or 0) == newest]
    column = ranked_by(rows)
    known = [(cell.value, row) for row in rows if column and (cell := score_of(row, column))]
    return max(known, key=lambda one: one[0])[1] if known else None
