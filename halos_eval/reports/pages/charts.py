"""Charts of a suite as SVG without a script: history, methods, win rates and cost. Altair and vl-convert draw them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import Any, NamedTuple

from markupsafe import Markup

from halos_eval.reports.pages import document
from halos_eval.reports.pages.leaderboard import cell_of, interval_of, ranked_by, score_columns
from halos_eval.reports.results import Row

MANY = 150
"""Points of a chart from which on they are put together, because more are neither readable nor small."""
CHARTS = 40
"""Columns with a history. Others are on the leaderboard."""
METHOD = "method"
"""Tag with the training method."""
COLOR, QUIET = "#3b78d8", "#808690"  # both have enough contrast on the light and the dark background
LENGTH_CONTROLLED, RAW = "alpacaeval_lcwr", "alpacaeval_wr"
Point = dict[str, Any]


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
    points = [
        {"time": row.registered, "value": cell.value, "low": span[0] if span else None, "high": span[1] if span else None}
        for row in rows
        if row.registered and (cell := cell_of(row, column)) and (span := interval_of(cell) or ()) is not None
    ]
    if len(points) < 2:
        return None
    words = f"{len(points)} checkpoints; lines are intervals of 95 %."
    if len(points) > MANY:
        points, unit = by_time(points)
        words = f"Dots are medians of the checkpoints of {unit}; lines go from their lowest to their highest score."
    for point in points:
        point["time"] = point["time"].isoformat()
    return _figure(column, points, ("time", "T", "registered"), ("value", "Q", column), words)


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
        if METHOD in row.tags and (cell := cell_of(row, column)):
            groups.setdefault(document.shown(row.tags[METHOD])[:40], []).append(cell.value)
    if len(groups) < 2:
        return None
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))[:20]
    points = [
        {"method": f"{name} ({len(group)})", "value": median(group), "low": min(group), "high": max(group)}
        for name, group in largest
    ]
    words = "Dots are medians; lines go from the lowest to the highest score. The number of checkpoints is in parentheses."
    return _figure(f"{column} by {METHOD}", points, ("value", "Q", column), ("method", "N", METHOD), words)


def win_rates(rows: Iterable[Row]) -> Figure | None:
    """Draw length-controlled against raw win rates; None without two checkpoints that have both."""
    points = [
        {"raw": raw.value, "controlled": controlled.value}
        for row in rows
        if (raw := row.cells.get(RAW)) and (controlled := row.cells.get(LENGTH_CONTROLLED))
    ]
    if len(points) < 2:
        return None
    words = "A checkpoint below the diagonal wins more often because its answers are longer."
    return _figure(
        "Length-controlled against raw win rate", _thinned(points), ("raw", "Q", RAW), ("controlled", "Q", LENGTH_CONTROLLED),
        words, diagonal=True,
    )  # fmt: skip


def cost(rows: Iterable[Row], field: str, title: str) -> Figure | None:
    """Draw what each evaluation cost, over the time of registration; None with fewer than two known ones."""
    points: list[Point] = [
        {"time": row.registered, "value": value}
        for row in rows
        if row.registered and (value := getattr(row, field)) is not None
    ]
    if len(points) < 2:
        return None
    words = f"{sum(one['value'] for one in points):.4g} in all, for {len(points)} checkpoints."
    if len(points) > MANY:
        points, unit = by_time(points)
        words += f" Dots are medians of the checkpoints of {unit}; lines go from the lowest to the highest."
    for point in points:
        point["time"] = point["time"].isoformat()
    return _figure(title, points, ("time", "T", "registered"), ("value", "Q", title), words)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return distinct points on a grid of one percentage point if there are many: they would cover each other."""
    if len(points) <= MANY:
        return list(points)
    cells = {tuple(round(value) for value in one.values()): one for one in points}
    return list(cells.values())


def _figure(
    title: str, points: list[Point], x: tuple[str, str, str], y: tuple[str, str, str], words: str, diagonal: bool = False
) -> Figure:  # fmt: skip
    import altair as alt
    import vl_convert

    flat = y[1] == "N"
    where, span = ("y", "x") if flat else ("x", "y")
    channels = {
        "x": alt.X(f"{x[0]}:{x[1]}", title=x[2], scale=alt.Undefined if x[1] == "T" else alt.Scale(zero=False)),
        "y": alt.Y(f"{y[0]}:{y[1]}", title=y[2], scale=alt.Undefined if flat else alt.Scale(zero=False)),
    }
    base = alt.Chart(alt.Data(values=points), title=alt.Undefined)
    layers: list[Any] = [base.mark_circle(size=36, opacity=1, color=COLOR).encode(**channels)]
    if "low" in points[0]:
        ends = {span: channels[span].copy(), where: channels[where]}
        ends[span] = (alt.X if flat else alt.Y)("low:Q", title=channels[span].title, scale=alt.Scale(zero=False))
        second = alt.X2("high:Q") if flat else alt.Y2("high:Q")
        layers.insert(0, base.mark_rule(color=QUIET).encode(**ends, **{f"{span}2": second}))
    if diagonal:
        ends_of = [{x[0]: at, y[0]: at} for at in (min(map(_least, points)), max(map(_most, points)))]
        layers.insert(0, alt.Chart(alt.Data(values=ends_of)).mark_line(color=QUIET, strokeDash=[4, 4]).encode(**channels))
    chart = alt.layer(*layers).properties(
        width=560, height=alt.Step(22) if flat else 180, background="transparent"
    ).configure(font="system-ui, sans-serif").configure_view(stroke=None).configure_axis(
        gridColor=QUIET, gridOpacity=0.25, domainColor=QUIET, tickColor=QUIET, labelFontSize=12, titleFontSize=12,
        labelLimit=220, titleFontWeight="normal",
    )  # fmt: skip
    svg = vl_convert.vegalite_to_svg(chart.to_dict(validate=False))
    return Figure(title, Markup(svg), words)  # noqa: S704 (vl-convert escapes the texts; a test tries hostile ones)


def _least(point: Point) -> float:
    return min(point.values())


def _most(point: Point) -> float:
    return max(point.values())
