"""The summary table: rows with HALOs' columns (model_name, alpacaeval_lcwr, TASK-METRIC, avg), and a status.

A cell without a score is empty, and ``status`` has the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from halos_eval.errors import BadInput
from halos_eval.planning.progress import READERS
from halos_eval.reports.results import ALPACA_COLUMNS, Row, rows_of_records
from halos_eval.reports.suite_rows import SuiteRows
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import read_record

if TYPE_CHECKING:
    import pandas as pd

JUDGE = "alpacaeval_judge"
FIRST = ["model_name", *ALPACA_COLUMNS.values(), JUDGE]
LAST = ["avg", "series", "status"]
COMPLETE = "complete"
SEPARATOR = "; "


def read_rows(root: str, suite: str | None = None) -> list[Row]:
    """Return the rows of ``suite`` from its plans or, without a suite, from the newest records below ``root``.

    Rows of the newest series come first.

    Raise BadInput if there are none, or StoreError.
    """
    if suite:
        urls = filesystem.find(filesystem.join(layout.plans_url(root), suite), ".json")
        suite_rows = SuiteRows(root, suite)
        with ThreadPoolExecutor(READERS) as pool:
            rows = list(pool.map(suite_rows.read, urls))
    else:
        records = (read_record(url) for url in filesystem.find(root, layout.RECORD))
        rows = rows_of_records(record for record in records if record)
    if not rows:
        raise BadInput(
            f"{root} contains no {'plan of ' + suite if suite else 'record'}: nothing has been evaluated there yet"
        )
    return sorted(rows, key=lambda row: (-(row.series or 0), row.checkpoint))


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a table, one per checkpoint, with the CSV's order of columns."""
    import pandas as pd

    documents = [document(row) for row in rows]
    return pd.DataFrame(documents)[columns(documents)]


def columns(documents: Iterable[dict[str, str | float]]) -> list[str]:
    """Return the columns in order: names and AlpacaEval first, tasks by name, average and status last."""
    found = {column for one in documents for column in one}
    tasks = sorted(found.difference(FIRST, LAST))
    return [column for column in (*FIRST, *tasks, *LAST) if column in found]


def document(row: Row) -> dict[str, str | float]:
    """Return the cells of the CSV by column; empty cells are NaN."""
    flat: dict[str, str | float] = {"model_name": row.checkpoint}
    for column, cell in row.cells.items():
        flat[column] = math.nan if cell is None else cell.value
        if cell and cell.stderr is not None:
            flat[f"{column}_stderr"] = cell.stderr
    if row.judge:
        flat[JUDGE] = row.judge
    if row.average is not None:
        flat["avg"] = row.average
    if row.series is not None:
        flat["series"] = row.series
    if row.missing is not None:
        # Semicolons separate the reasons, so those inside a reason become commas.
        flat["status"] = SEPARATOR.join(str(one).replace(SEPARATOR, ", ") for one in row.missing) or COMPLETE
    return flat
