"""The baseline: a table from log files by the rule that HALOs publishes, without its tolerance for odd logs.

The rule of HALOs' ``evals/scripts/summarize_metrics.py``: the model is the last part of ``pretrained=`` that is not
FINAL; each row of lm_eval's table that is not indented is a column TASK-METRIC; the leaderboard's row of the model has
the win rates; ``avg`` is the mean of all metrics. Each call reads all logs.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

# Of the same form as HALOs' patterns, because a large part of the time is what they match in vain.
MODEL = re.compile(r"pretrained=([^,]+)")
CELL = r"\|([^|]*?)\s*"
ROW = re.compile(rf"\|([^|]+?)\s*{CELL}{CELL}{CELL}{CELL}{CELL}\|\s*(\d+\.\d+)\s*\|\s*±\s*\|\s*([^|]*)\s*\|")
BOARD = re.compile(r"(\S+(?:/\S+)*)\s+(\d+\.\d+)\s+(\d+\.\d+)\s+\d+\.\d+\s+\d+\s+\d+")


def name_of(path: str) -> str:
    """Return the last part of a path that is not FINAL."""
    return [part for part in path.split("/") if part and part != "FINAL"][-1]


def row_of(text: str) -> dict[str, str | float]:
    """Return the columns of one log."""
    found = MODEL.search(text)
    if found is None:
        return {}
    row: dict[str, str | float] = {"model_name": name_of(found[1])}
    metrics: list[float] = []
    for task, _, _, _, metric, _, value, _ in ROW.findall(text):
        if task.strip() and not task.startswith(" "):
            row[f"{task.strip()}-{metric.strip()}"] = float(value)
            metrics.append(float(value))
    for path, lcwr, wr in BOARD.findall(text):
        if name_of(path) == row["model_name"]:
            row |= {"alpacaeval_lcwr": float(lcwr), "alpacaeval_wr": float(wr)}
    return row | ({"avg": round(sum(metrics) / len(metrics), 4)} if metrics else {})


def write_table(logs: Path, output: Path) -> int:
    """Write the CSV of all logs in a folder; return the number of its rows."""
    rows = [row for path in sorted(logs.glob("*.log")) if (row := row_of(path.read_text(errors="ignore")))]
    columns = dict.fromkeys(column for row in rows for column in row)
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)
