"""Made rows for the report's pages."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from halos_eval.reports.results import Cell, Missing, Row

SUITE = "made"
TASKS = [f"task_{number:02d}" for number in range(12)]
METHODS = ["kto", "dpo", "sft", "ppo"]
BEGAN = datetime(2026, 1, 5, tzinfo=UTC)


def wave(number, at):
    """A score that looks like one, the same each time."""
    return 0.35 + 0.0001 * number + 0.1 * math.sin(number * 1.7 + at) ** 2


def row(number, **changes):
    """The results of one made checkpoint."""
    cells = {
        f"{task}-{metric}": Cell(wave(number, at), 0.0123)
        for at, task in enumerate(TASKS)
        for metric in ("acc", "acc_norm")
    }
    cells["alpacaeval_lcwr"] = Cell(100 * wave(number, 20), 1.4)
    cells["alpacaeval_wr"] = Cell(100 * wave(number, 21), 1.5)
    lost = number % 7 == 3
    if lost:
        cells["task_03-acc"] = cells["task_03-acc_norm"] = None
    values = {
        "cells": cells,
        "judge": "gpt-4.1",
        "average": None if lost else wave(number, 30),
        "average_stderr": None if lost else 0.004,
        "missing": (Missing("task_03", "OutOfMemory: the pod was killed. Give it more memory"),) if lost else (),
        "series": 1 if number % 10 == 9 else 2,
        "tags": {"method": METHODS[number % 4], "base": "llama3-8b"},
        "registered": BEGAN + timedelta(hours=4 * number),
        "evaluated": BEGAN + timedelta(hours=4 * number + 9),
        "gpu_hours": 2 + number % 5 / 10,
        "price_usd": 1.31,
        "warnings": ("alpacaeval: 22 of 805 answers were cut at max_tokens",) if number % 9 == 4 else (),
    }
    return Row(f"llama3-8b-{METHODS[number % 4]}-{number:04d}", **{**values, **changes})
