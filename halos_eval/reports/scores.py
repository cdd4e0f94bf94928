"""All scores of a suite as a long table: one line for each checkpoint, stage, metric and filter. A contract.

The columns, their order and their meaning are those of ``COLUMNS`` and of `Line`, as long as ``SCHEMA`` stays the same.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.planning.progress import READERS
from halos_eval.reports.facts import hours_of
from halos_eval.reports.remarks import limit_of
from halos_eval.reports.results import real_scores
from halos_eval.reports.shown import Shown, ShownParts, shown
from halos_eval.reports.suite_rows import SuiteRows
from halos_eval.storage import filesystem, layout
from halos_eval.untrusted import as_cell

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
"""Version of the columns; a new column at the end does not change it."""
TIMES = ["registered", "evaluated"]


@dataclass(frozen=True)
class Line:
    """One score, or a stage without a score. An unknown value is empty, never zero."""

    schema: int
    """Version of these columns."""
    suite: str
    """Name of the suite."""
    checkpoint: str
    """Name of the checkpoint."""
    registered: datetime | None
    """UTC time of its registration."""
    part: str
    """Stage: ``sample``, ``alpaca_eval`` (``alpaca_eval@LABEL`` for a further judge), or the task in the suite."""
    status: Literal["current", "not current", "missing"]
    """Whether the result is that of the suite's present definition."""
    reason: str
    """Why it is not current, or missing; empty otherwise."""
    fingerprint: str | None = None
    """Fingerprint of the result."""
    series: str | None = None
    """Versions of the evaluation tools; compare only equal ones."""
    evaluated: datetime | None = None
    """UTC time at which the stage ended."""
    gpu_hours: float | None = None
    """Hours times GPUs of the stage's latest run; on the first line of a stage only, so that a sum is right."""
    dollars: float | None = None
    """US dollars of the judge's answers; on the first line of a stage only."""
    task: str | None = None
    """lm_eval's task, or ``alpaca_eval``."""
    group: str | None = None
    """Group that the task is a member of; empty for a task of the suite."""
    metric: str | None = None
    """The tool's name of the metric."""
    filter: str | None = None
    """lm_eval's filter that extracted the answer."""
    value: float | None = None
    """Value in the tool's unit: a fraction for lm_eval, percent for alpaca_eval."""
    stderr: float | None = None
    """Standard error in the same unit."""
    n: int | None = None
    """Documents or pairs with a score; empty for a member of a group."""
    clusters: int | None = None
    """Independent groups of these; empty if each is independent."""
    limit: float | None = None
    """Number of documents to which a trial was limited, or their share below 1."""


COLUMNS = tuple(one.name for one in fields(Line))
"""Columns in order."""


def scores(root: str, suite: str, groups: bool = False) -> pd.DataFrame:
    """Return the scores of all checkpoints of a suite; with ``groups``, also of the members of groups.

    A checkpoint whose plan is damaged has one line with the reason. Raise BadInput if the suite has no plan, or
    StoreError.
    """
    import pandas as pd

    plans = filesystem.entries(filesystem.join(layout.plans_url(root), suite))
    names = sorted(name.removesuffix(".json").replace("__", "/") for name in plans if name.endswith(".json"))
    if not names:
        raise BadInput(f"{root} contains no plan of {suite}: nothing has been evaluated there yet")
    rows = SuiteRows(root, suite)
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: list(_lines(rows, name, groups)), names)
        lines = [asdict(line) for own in found for line in own]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    whole, real = ["schema", "n", "clusters"], ["gpu_hours", "dollars", "value", "stderr"]
    shares = any(line["limit"] is not None and line["limit"] % 1 for line in lines)
    (real if shares else whole).append("limit")
    return frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(real, "float64")).assign(
        **{column: pd.to_datetime(frame[column], utc=True) for column in TIMES}
    )


def encoded(frame: pd.DataFrame, name: str) -> bytes:
    """Return a frame as CSV, Parquet or JSON, by the ending of ``name``. Raise BadInput for another ending."""
    if name.endswith(".csv"):
        texts = {
            str(column): frame[column].map(as_cell, na_action="ignore")
            for column in frame.select_dtypes(["object", "str"])
        }
        return bytes(frame.assign(**texts).to_csv(index=False, lineterminator="\n").encode())
    if name.endswith(".json"):
        # Python's encoder, because pandas' rounds numbers to at most 15 decimals. JSON has no infinity.
        known = frame.notna() & ~frame.isin([math.inf, -math.inf])
        lines = frame.astype(object).where(known, None).to_dict("records")
        return json.dumps(lines, indent=1, default=datetime.isoformat, allow_nan=False).encode()
    if not name.endswith(".parquet"):
        raise BadInput(f"{name} is not supported; expected a name that ends with .csv, .parquet or .json")
    if find_spec("pyarrow") is None:
        raise BadInput(
            "this environment has no pyarrow, which Parquet needs. Run the command in the judge's environment"
        )
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _lines(rows: SuiteRows, name: str, groups: bool) -> Iterator[Line]:
    try:
        found = shown(rows.root, rows.suite, name, rows)
    except HalosEvalError as error:
        yield Line(SCHEMA, rows.suite, name, None, "plan", "missing", str(error))
        return
    for part in found.parts:
        yield from _of_part(rows.suite, found, part, groups)


def _of_part(suite: str, found: ShownParts, part: Shown, groups: bool) -> Iterator[Line]:
    record, start = part.record, (SCHEMA, suite, found.checkpoint, found.registered, part.part)
    if record is None:
        yield Line(*start, "missing", part.reason)
        return
    own = [score for score in real_scores(record) if groups or score.group is None]
    tasks = {score.task for score in real_scores(record) if score.group is None}
    tools = record.identity.get("tools", {})
    whole = Line(
        *start,
        "not current" if part.reason else "current",
        part.reason,
        fingerprint=record.fingerprint,
        series=", ".join(f"{tool} {version}" for tool, version in sorted(tools.items())) or None,
        evaluated=record.provenance.ended,
        gpu_hours=hours_of(record, part.gpus),
        dollars=record.usage.price_usd,
        limit=limit_of(record),
    )
    if not own:
        yield whole
    own.sort(key=lambda one: (one.group or "", one.task, one.metric, one.filter))
    for number, score in enumerate(own):
        line = replace(whole, gpu_hours=None, dollars=None) if number else whole
        items = record.coverage.scored if len(tasks) == 1 and score.group is None else None
        yield replace(
            line, task=score.task, group=score.group, metric=score.metric, filter=score.filter, value=score.value,
            stderr=score.stderr, n=items, clusters=score.clusters,
        )  # fmt: skip
