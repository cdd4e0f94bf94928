"""Shared by the readers of both tools' logs: clean lines, numbers, and the class of a reading."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from halos_eval.reports.halos_logs.models import Model

# Colours and cursor movements (CSI), and terminal titles or hyperlinks (OSC).
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
# float() alone also accepts "1_000", "nan" and "infinity".
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Reading:
    """Columns of one model that were printed together; a later reading with the same key replaces all of them."""

    model: Model
    """The model that the log's header names, or the leaderboard's row."""
    key: str
    """``TASK-METRIC``, ``TASK-METRIC,FILTER`` or ``alpacaeval``."""
    columns: dict[str, float]
    """Column name to value, never NaN; empty if the log has no number."""
    averaged: bool
    """Whether the column named like the key counts in ``avg``."""
    source: str
    """The file, for warnings."""
    task: str = ""
    """The task of lm_eval; empty for AlpacaEval."""
    limit: str | None = None
    """Documents to which a trial was limited; None for a full run."""


def clean_lines(raw: bytes) -> list[str]:
    """Return the lines of a log, as a terminal showed them.

    A carriage return also ends a line: a progress bar that is redrawn in place leaves one line per state, and the text
    after its last state is a separate line.
    """
    text = raw.decode("utf-8-sig", errors="replace")
    return re.split(r"\r\n|\r|\n", _ESCAPES.sub("", text))


def number(cell: str) -> float | None:
    """Return the value of a table's cell; None for ``N/A``, ``NaN``, infinities and blanks."""
    cell = cell.strip()
    if not _NUMBER.fullmatch(cell):
        return None
    value = float(cell)
    return value if math.isfinite(value) else None
