"""The table as pandas makes it, to compare with and to look into."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from halos_eval.reports.results import Row
from halos_eval.reports.table import cells_by_column


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a table, one per checkpoint, with the CSV's order of columns."""
    header, lines = cells_by_column(rows)
    table = pd.DataFrame(lines)[header]
    counts = (column for row in rows for column in (*row.counts, *row.items))
    whole = {"series", "schema", *counts} & set(table.columns)
    return table.astype(dict.fromkeys(whole, "Int64"))  # whole numbers also in columns with empty cells
