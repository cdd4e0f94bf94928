"""The leaderboard: all rows of a suite as the data of one table that sorts and filters in the browser."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.reports.pages import document
from halos_eval.reports.pages.links import checkpoint_page
from halos_eval.reports.ranking import AVERAGE, cell_of, ranked_by, score_of
from halos_eval.reports.results import ALPACA_COLUMNS, Cell, Row
from halos_eval.reports.table import short_status
from halos_eval.reports.uncertainty import Z

DIGITS = 5
"""Significant digits of the numbers in the page. The CSV has all."""


def page(suite: str, rows: Sequence[Row]) -> bytes:
    """Return the page ``index.html`` of a suite."""
    script, style = document.table_script()
    return document.render(
        "leaderboard.html.jinja",
        script,
        style,
        suite=suite,
        count=len(rows),
        ranked=ranked_by(rows),
        data=document.data(content(rows)),
    )


def content(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the table's data: columns, rows, and each reason once, because many cells have the same one."""
    scores = score_columns(rows)
    ranks = ranks_of(rows, ranked_by(rows))
    reasons: dict[str, int] = {}
    lines = []
    for row, rank in zip(rows, ranks, strict=True):
        why = reasons_of(row, scores)
        cells = [_cell(cell_of(row, column), why.get(column), reasons) for column in scores]
        status = [short_status(row.missing, row.trial, row.warnings), *map(str, row.missing or ()), *row.warnings]
        lines.append(
            [
                rank,
                [row.checkpoint, checkpoint_page(row.checkpoint)],
                " ".join(f"{key}={value}" for key, value in sorted(row.tags.items())),
                row.registered.strftime("%Y-%m-%d") if row.registered else "",
                *cells,
                row.series,
                [reasons.setdefault(text, len(reasons)) for text in status],
                _rounded(row.gpu_hours),
                _rounded(row.price_usd),
            ]
        )
    return {"scores": scores, "rows": lines, "reasons": list(reasons)}


def score_columns(rows: Iterable[Row]) -> list[str]:
    """Return the columns with scores: the average, AlpacaEval, then tasks by name."""
    found = {column for row in rows for column in row.cells}
    first = [AVERAGE] if any(row.average is not None for row in rows) else []
    own = [column for column in ALPACA_COLUMNS.values() if column in found]
    return [*first, *own, *sorted(found.difference(own))]


def interval_of(cell: Cell | None) -> tuple[float, float] | None:
    """Return the interval of 95 % of a score; None if it has none."""
    if cell is None:
        return None
    if cell.interval:
        return cell.interval
    error = cell.shown_stderr
    return None if error is None else (cell.value - Z * error, cell.value + Z * error)


def ranks_of(rows: Sequence[Row], column: str | None) -> list[list[int] | None]:
    """Return the first and the last rank that each row can have, among the rows of its series.

    A row is certainly better than another one if its whole interval of 95 % is above. So ``[3, 3]`` is a rank, and
    ``[1, 7]`` says that the intervals do not allow one. None without an interval, or if the score is not current.
    """
    spans = [interval_of(score_of(row, column)) if column else None for row in rows]
    groups: dict[int | None, list[tuple[float, float]]] = {}
    for row, span in zip(rows, spans, strict=True):
        if span:
            groups.setdefault(row.series, []).append(span)
    lows = {series: sorted(low for low, _ in group) for series, group in groups.items()}
    highs = {series: sorted(high for _, high in group) for series, group in groups.items()}
    ranks: list[list[int] | None] = []
    for row, span in zip(rows, spans, strict=True):
        if span is None:
            ranks.append(None)
            continue
        count = len(lows[row.series])
        better = count - bisect_right(lows[row.series], span[1])
        worse = bisect_left(highs[row.series], span[0])
        ranks.append([1 + better, count - worse])
    return ranks


def reasons_of(row: Row, columns: Sequence[str]) -> dict[str, str]:
    """Return why scores of a row are missing or not current, by column."""
    found: dict[str, list[str]] = {}
    for one in row.missing or ():
        for column in columns:
            if _concerns(one.what, column):
                found.setdefault(column, []).append(one.reason)
    return {column: "; ".join(dict.fromkeys(reasons)) for column, reasons in found.items()}


def _concerns(what: str, column: str) -> bool:
    """Return whether a missing item, a column or a stage or a part of the suite, is the reason for a column."""
    stage, _, label = what.partition("@")
    if stage in {"sample", "judge", ALPACA_EVAL}:
        name, _, judge = column.partition("@")
        return name in ALPACA_COLUMNS.values() and (judge == label or stage != "judge")
    return what == column or column.startswith(f"{what}-")


def _cell(cell: Cell | None, reason: str | None, reasons: dict[str, int]) -> Any:
    """Return ``[value, error]``, ``[value, low, high]``, ``[value]`` or, for a missing score, the reason's number."""
    if cell is None:
        return None if reason is None else reasons.setdefault(reason, len(reasons))
    value = _rounded(cell.value)
    if cell.interval:
        return [value, *map(_rounded, cell.interval)]
    return [value] if cell.shown_stderr is None else [value, _rounded(cell.shown_stderr)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
