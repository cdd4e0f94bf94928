"""Draw one chart as SVG without a script: Altair describes it, and vl-convert renders it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

COLOR, QUIET = "#3b78d8", "#808690"  # both have enough contrast on the light and the dark background
WIDTH, HEIGHT, STEP = 560, 180, 22
Point = dict[str, Any]


class Axis(NamedTuple):
    """What one axis of a chart shows."""

    key: str
    """Key of the points."""
    kind: str
    """T: time, Q: number, N: name."""
    title: str


def draw(points: Sequence[Point], x: Axis, y: Axis, diagonal: bool = False) -> Markup:
    """Return a chart with a dot for each point, and a line from its ``low`` to its ``high`` if it has them."""
    import altair as alt
    import vl_convert

    channels = {"x": alt.X(**_channel(x)), "y": alt.Y(**_channel(y))}
    base = alt.Chart({"values": list(points)})
    layers = [base.mark_circle(size=36, opacity=1, color=COLOR).encode(**channels)]
    if "low" in points[0]:
        low, high = _channel(x if y.kind == "N" else y, "low"), "high:Q"
        ends = {"x": alt.X(**low), "x2": high} if y.kind == "N" else {"y": alt.Y(**low), "y2": high}
        layers.insert(0, base.mark_rule(color=QUIET).encode(**{**channels, **ends}))
    if diagonal:
        values = [value for one in points for value in (one[x.key], one[y.key])]
        ends_of = {"values": [{x.key: end, y.key: end} for end in (min(values), max(values))]}
        layers.insert(0, alt.Chart(ends_of).mark_line(color=QUIET, strokeDash=[4, 4]).encode(**channels))
    axes = {
        "gridColor": QUIET, "gridOpacity": 0.25, "domainColor": QUIET, "tickColor": QUIET, "labelFontSize": 12,
        "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 220,
    }  # fmt: skip
    height = alt.Step(STEP) if y.kind == "N" else HEIGHT
    chart = alt.layer(*layers).properties(width=WIDTH, height=height, background="transparent")
    chart = chart.configure(font="system-ui, sans-serif").configure_view(stroke=None).configure_axis(**axes)
    svg = vl_convert.vegalite_to_svg(chart.to_dict(validate=False))
    return Markup(svg)  # noqa: S704 (vl-convert escapes all texts; a test tries hostile ones)


def _channel(axis: Axis, key: str | None = None) -> dict[str, Any]:
    scale = {"scale": {"zero": False}} if axis.kind == "Q" else {}
    return {"field": key or axis.key, "type": _TYPES[axis.kind], "title": axis.title, **scale}


_TYPES = {"T": "temporal", "Q": "quantitative", "N": "nominal"}
