"""Charts of a suite as SVG without a script: history, methods, win rates and cost. All scores in them are current."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from statistics import median
from typing import NamedTuple

from markupsafe import Markup

from halos_eval.reports.pages import document
from halos_eval.reports.pages.drawing import Axis, Point, draw
from halos_eval.reports.pages.leaderboard import interval_of, score_columns
from halos_eval.reports.ranking import ranked_by, score_of
from halos_eval.reports.results import Row

MANY = 150
"""Points of a chart from which on they are merged, because more are neither readable nor small."""
CHARTS = 40
"""Columns with a history. Others are on the leaderboard."""
METHOD = "method"
"""Tag with the training method."""
LENGTH_CONTROLLED, RAW = "alpacaeval_lcwr", "alpacaeval_wr"


class Figure(NamedTuple):
    """A drawn chart."""

    title: str
    svg: Markup
    words: str
    """Description for people who do not see it."""


def page(suite: str, rows: Sequence[Row]) -> bytes:
    """Return the page ``charts.html`` of a suite: the rows of its newest series, which alone are comparable."""
    newest = max((row.series or 0 for row in rows), default=0)
    rows = [row for row in rows if (row.series or 0) == newest]
    sections = {
        "History": [one for column in history_columns(rows) if (one := history(rows, column))],
        "Methods": [one for column in main_columns(rows) if (one := methods(rows, column))],
        "Win rates": [one for one in [win_rates(rows)] if one],
        "Cost": [one for one in [cost(rows, "gpu_hours", "GPU-hours"), cost(rows, "price_usd", "Judge in $")] if one],
    }
    return document.render("charts.html.jinja", suite=suite, series=newest or None, sections=sections)


def history_columns(rows: Sequence[Row]) -> list[str]:
    """Return the average, AlpacaEval's columns, and the first metric of each task."""
    first: dict[str, str] = {}
    for column in score_columns(rows):
        first.setdefault(column.rpartition("-")[0] or column, column)
    return list(first.values())[:CHARTS]


def main_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns by which methods are compared."""
    return list(dict.fromkeys(one for one in (ranked_by(rows), LENGTH_CONTROLLED) if one))


def history(rows: Iterable[Row], column: str) -> Figure | None:
    """Draw a score over the time of registration; None with fewer than two dated scores."""
    points: list[Point] = []
    for row in rows:
        cell = score_of(row, column)
        if row.registered and cell:
            low, high = interval_of(cell) or (cell.value, cell.value)
            points.append({"time": row.registered, "value": cell.value, "low": low, "high": high})
    words = f"{len(points)} checkpoints; lines are intervals of 95 %."
    return _over_time(column, points, words, "")


def _over_time(title: str, points: list[Point], words: str, words_if_many: str) -> Figure | None:
    if len(points) < 2:
        return None
    if len(points) > MANY:
        points, unit = by_time(points)
        words = (
            f"{words_if_many}Dots are medians of the checkpoints of {unit}; lines go from the lowest to the highest."
        )
    dated = [{**one, "time": one["time"].isoformat()} for one in points]
    return Figure(title, draw(dated, Axis("time", "T", "registered"), Axis("value", "Q", title)), words)


def by_time(points: Sequence[Point]) -> tuple[list[Point], str]:
    """Return median, lowest and highest value of each period, with at most ``MANY`` periods, and a period in words."""
    first, last = min(one["time"] for one in points), max(one["time"] for one in points)
    days = next((days for days in (1, 7, 28) if (last - first).days / days < MANY), (last - first).days // MANY + 1)
    groups: dict[int, list[float]] = {}
    for one in points:
        groups.setdefault((one["time"] - first).days // days, []).append(one["value"])
    found = [
        {"time": first + timedelta(days=days * at), "value": median(group), "low": min(group), "high": max(group)}
        for at, group in sorted(groups.items())
    ]
    return found, {1: "a day", 7: "a week"}.get(days, f"{days} days")


def methods(rows: Iterable[Row], column: str) -> Figure | None:
    """Draw the scores of each method; None with fewer than two methods."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if METHOD in row.tags and (cell := score_of(row, column)):
            groups.setdefault(document.shown(row.tags[METHOD])[:40], []).append(cell.value)
    if len(groups) < 2:
        return None
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))[:20]
    points = [
        {"method": f"{name} ({len(group)})", "value": median(group), "low": min(group), "high": max(group)}
        for name, group in largest
    ]
    words = (
        "Dots are medians; lines go from the lowest to the highest score. The number of checkpoints is in parentheses."
    )
    svg = draw(points, Axis("value", "Q", column), Axis("method", "N", METHOD))
    return Figure(f"{column} by {METHOD}", svg, words)


def win_rates(rows: Iterable[Row]) -> Figure | None:
    """Draw length-controlled against raw win rates; None without two checkpoints that have both."""
    points = [
        {"raw": raw.value, "controlled": controlled.value}
        for row in rows
        if (raw := score_of(row, RAW)) and (controlled := score_of(row, LENGTH_CONTROLLED))
    ]
    if len(points) < 2:
        return None
    if len(points) > MANY:  # they would cover each other: one for each square of one percentage point
        points = list({(round(one["raw"]), round(one["controlled"])): one for one in points}.values())
    svg = draw(points, Axis("raw", "Q", RAW), Axis("controlled", "Q", LENGTH_CONTROLLED), diagonal=True)
    words = "A checkpoint below the diagonal wins more often because its answers are longer."
    return Figure("Length-controlled against raw win rate", svg, words)


def cost(rows: Iterable[Row], field: str, title: str) -> Figure | None:
    """Draw what each evaluation cost, over the time of registration; None with fewer than two known ones."""
    points: list[Point] = [
        {"time": row.registered, "value": value}
        for row in rows
        if row.registered and (value := getattr(row, field)) is not None
    ]
    words = f"{sum(one['value'] for one in points):.4g} in all, for {len(points)} checkpoints. "
    return _over_time(title, points, words, words)
