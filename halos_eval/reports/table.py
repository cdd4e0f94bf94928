"""The summary table: rows with HALOs' columns (model_name, alpacaeval_lcwr, TASK-METRIC, avg), and a status.

A cell without a score is empty, and ``status`` has the reason. The table of a suite also has facts about its rows.
Names, meaning and order of its columns are a contract as long as ``SCHEMA`` stays the same.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from halos_eval.errors import BadInput
from halos_eval.reports.facts import NO_FILTER
from halos_eval.reports.kept_rows import rebuild
from halos_eval.reports.records import rows_of_records
from halos_eval.reports.results import ALPACA_COLUMNS, Missing, Row, labelled
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import readable_record
from halos_eval.untrusted import as_cell

if TYPE_CHECKING:
    import pandas as pd

JUDGE = "alpacaeval_judge"
FIRST = ["model_name", *ALPACA_COLUMNS.values(), JUDGE]
LAST = ["avg", "avg_stderr", "gate", "series", "status"]
FACTS = ["suite", "registered", "evaluated", "gpu_hours", "dollars", "fingerprint", "stages", "schema"]
"""Columns of a suite's table that HALOs' table has not; `facts_of` has these, and those beside the tasks."""
TIMES = ["registered", "evaluated"]
SCHEMA = 1
"""Version of the columns of a suite's table; a new column does not change it."""
COMPLETE = "complete"
SEPARATOR = "; "


def read_rows(root: str, suite: str | None = None) -> list[Row]:
    """Return the rows of ``suite`` from its plans or, without a suite, from the newest records below ``root``.

    Rows of the newest series come first.

    Raise BadInput if there are none, or StoreError.
    """
    if suite:
        rows = list(rebuild(root, suite).rows.values())
    else:
        read = [(url, *readable_record(url)) for url in filesystem.find(root, layout.RECORD)]
        rows = rows_of_records(record for _, record, _ in read if record)
        rows = _with_damaged(rows, {url: why for url, _, why in read if why})
    if not rows:
        raise BadInput(
            f"{root} contains no {'plan of ' + suite if suite else 'record'}: nothing has been evaluated there yet"
        )
    return in_order(rows)


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return the rows in the order of the table, with a warning in those that another version of the judge judged."""
    rows = list(rows)
    versions: dict[tuple[str | None, int | None], set[str]] = {}
    for row in rows:
        versions.setdefault((row.judge, row.series), set()).update(row.judge_versions)
    rows = [_with_versions(row, versions[row.judge, row.series]) for row in rows]
    return sorted(rows, key=lambda row: (-(row.series or 0), row.checkpoint))


def _with_versions(row: Row, column: set[str]) -> Row:
    """Return the row, with a warning if its judge answered under several names, here or in rows of its series."""
    if not row.judge_versions or len(column) < 2:
        return row
    others = ", ".join(sorted(column.difference(row.judge_versions)))
    words = f"alpacaeval: judged by {', '.join(row.judge_versions)}" + (
        f", and other rows by {others}" if others else ""
    )
    return replace(row, warnings=(*row.warnings, words))


def _with_damaged(rows: Sequence[Row], damaged: Mapping[str, str]) -> list[Row]:
    """Return the rows, with unreadable records as missing items of the rows of their checkpoints."""
    found = {row.checkpoint: row for row in rows}
    for url, why in damaged.items():
        folders = url.split("/")[:-1]
        name = folders[folders.index("runs") + 1].replace("__", "/") if "runs" in folders[:-1] else folders[-1]
        row = found.get(name, Row(name))
        found[name] = replace(row, missing=(*(row.missing or ()), Missing("record", why)), average=None)
    return list(found.values())


def csv_of(rows: Sequence[Row]) -> bytes:
    """Return the CSV of rows, one per checkpoint. It has the bytes that pandas writes, which takes much longer.

    Whole numbers are the exception: they stay so if another row has none.
    """
    header, lines = cells_by_column(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(as_cell, header))
    for line in lines:
        empty = {column for column, cell in line.items() if isinstance(cell, float) and math.isnan(cell)}
        writer.writerow(["" if column in empty else as_cell(line.get(column, "")) for column in header])
    return text.getvalue().encode()


def cells_by_column(rows: Sequence[Row]) -> tuple[list[str], list[dict[str, str | float]]]:
    """Return the columns of rows in order, and the cells of each row; empty cells are absent or NaN."""
    lines = [document(row) | facts_of(row) for row in rows]
    return columns(lines), [{**row.counts, **line} for row, line in zip(rows, lines, strict=True)]


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the table of rows as a pandas frame, with the columns of the CSV. Whole numbers are Int64."""
    import pandas as pd

    header, lines = cells_by_column(rows)
    frame = pd.DataFrame(lines, columns=header)
    whole = [name for name in header if all(isinstance(line.get(name, 0), int) for line in lines)]
    return frame.astype(dict.fromkeys(whole, "Int64")).assign(
        **{name: pd.to_datetime(frame[name], utc=True) for name in TIMES if name in header}
    )


def columns(lines: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the columns in order: names and AlpacaEval first, tasks by name, average and status, then facts."""
    found = {column for line in lines for column in line}
    tasks = sorted(found.difference(FIRST, LAST, FACTS))
    return [column for column in (*FIRST, *tasks, *LAST, *FACTS) if column in found]


def document(row: Row) -> dict[str, str | float]:
    """Return the cells of the CSV by column; empty cells are NaN.

    A count is a column only if it is not 0 in some row, because most are 0 in all rows.
    """
    flat: dict[str, str | float] = {"model_name": row.checkpoint}
    flat |= {column: count for column, count in row.counts.items() if count}
    for column, cell in row.cells.items():
        flat[column] = math.nan if cell is None else cell.value
        if cell and cell.shown_stderr is not None:
            flat[f"{column}_stderr"] = cell.shown_stderr
        if cell and cell.interval:
            flat[f"{column}_low"], flat[f"{column}_high"] = cell.interval
    if row.judge:
        flat[JUDGE] = row.judge
    flat |= {labelled(JUDGE, label): model for label, model in row.judges.items()}
    if row.average is not None:
        flat["avg"] = row.average
    if row.average_stderr is not None:
        flat["avg_stderr"] = row.average_stderr
    if row.gate:
        flat["gate"] = row.gate
    if row.series is not None:
        flat["series"] = row.series
    if reasons := status(row):
        # Semicolons separate the reasons, so those inside a reason become commas.
        flat["status"] = SEPARATOR.join(reason.replace(SEPARATOR, ", ") for reason in reasons)
    return flat


def facts_of(row: Row) -> dict[str, str | float]:
    """Return the facts about a row of a suite by column; none for rows of other tables. Unknown ones are absent."""
    if not row.suite:
        return {}
    filters = {f"{name}_filter": cell.filter for name, cell in row.cells.items() if cell and cell.filter != NO_FILTER}
    stages = SEPARATOR.join(f"{title}={status}" for title, status in row.stages.items())
    known: dict[str, str | float | None] = {
        "suite": row.suite,
        "registered": row.registered.isoformat(timespec="seconds") if row.registered else None,
        "evaluated": row.evaluated.isoformat(timespec="seconds") if row.evaluated else None,
        "gpu_hours": row.gpu_hours,
        "dollars": row.price_usd,
        "fingerprint": row.fingerprint,
        "stages": stages or None,
        "schema": SCHEMA,
    }
    return filters | dict(row.items) | {column: value for column, value in known.items() if value is not None}


def short_status(missing: Sequence[object] | None, trial: str, warnings: Sequence[object]) -> str:
    """Return the status in numbers, for tables of limited width; ``missing`` is None if it is unknown."""
    count = len(missing or ())
    parts = [f"{count} missing" if count else COMPLETE] if missing is not None else []
    parts += ["trial"] if trial else []
    parts += [f"{len(warnings)} warning{'s' if len(warnings) > 1 else ''}"] if warnings else []
    return ", ".join(parts)


def status(row: Row) -> list[str]:
    """Return ``complete`` or the reason for each missing item, then the limit of a trial and the warnings."""
    complete = [COMPLETE] if row.complete else []
    trial = [f"trial: {row.trial}"] if row.trial else []
    return [*complete, *map(str, row.missing or ()), *trial, *(f"warning: {one}" for one in row.warnings)]
