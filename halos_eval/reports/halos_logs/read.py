"""Summarize the logs that users of ContextualAI's HALOs already have, with one row per model.

Column names are those of HALOs' ``evals/scripts/summarize_metrics.py``. This module also reads further metrics,
filters, several runs in a log, and logs of AlpacaEval alone. New evaluations do not need it, because they save typed
records.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from halos_eval.errors import BadInput
from halos_eval.reports.halos_logs import alpaca
from halos_eval.reports.halos_logs.lm_eval import LmEvalLog
from halos_eval.reports.halos_logs.models import Model
from halos_eval.reports.halos_logs.text import Reading, clean_lines
from halos_eval.reports.names import distinct
from halos_eval.reports.remarks import describe_limits
from halos_eval.reports.results import Cell, Missing, Row, mean_of
from halos_eval.untrusted import shown_name

logger = logging.getLogger(__name__)


def read_logs(path: Path) -> list[Row]:
    """Return one row per model, sorted by name, from a log file or the ``*.log`` files of a directory.

    A model is the weights, adapter and revision that lm_eval's header names. A row of an AlpacaEval leaderboard belongs
    to the model that it names, if that is one model.

    The columns, each only if it has a number: ``alpacaeval_lcwr``, ``alpacaeval_wr``, ``alpacaeval_wr_stderr``
    (percent), ``alpacaeval_n_total`` (comparisons), ``alpacaeval_avg_length`` (characters); for each top-level task or
    group, and each part of a group without a score of its own, ``TASK-METRIC`` for the first filter,
    ``TASK-METRIC,FILTER`` for each further one, in lm_eval's unit, and the same with ``_stderr``; ``avg``, the mean of
    each task's first metric, rounded to four places, without metrics that are better when lower. A row that lacks a
    task of another row, or a number, has no ``avg``. Full runs override those with a limit. If two readings still
    differ, that of the last modified file is kept, with a warning.

    Raise BadInput if the path or its logs are missing, unreadable, or contain no score.
    """
    files = _log_files(path)
    texts = {file: clean_lines(_bytes_of(file)) for file in files}
    lm_eval = {file: LmEvalLog.read(lines, shown_name(file.name)) for file, lines in texts.items()}
    boards = {file: alpaca.leaderboards(lines, shown_name(file.name)) for file, lines in texts.items()}
    all_models = {model for log in lm_eval.values() for model in log.models}

    readings: list[Reading] = []
    for file in files:
        found = lm_eval[file].readings + alpaca.readings(boards[file], file, lm_eval[file].models, all_models)
        if not found:
            logger.warning("%s: no score found", file.name)
        readings += found
    if not any(reading.columns for reading in readings):
        raise BadInput(
            f"no score found in {path}; expected the tables that lm_eval or alpaca_eval print at the end, with "
            "lm_eval's line above its tables. Check that the evaluations finished"
        )
    return sorted(_rows(readings), key=lambda row: row.checkpoint)


def _log_files(path: Path) -> list[Path]:
    """Return the logs, oldest first, so that a rerun overrides the earlier run."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadInput(f"{path} does not exist; expected a log file, or a directory with *.log files")
    files = [file for file in path.glob("*.log") if file.is_file()]
    if not files:
        raise BadInput(f"{path} contains no *.log file. Save the evaluations' output as NAME.log, or pass one file")
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}): fix its permissions") from error


def _rows(readings: Sequence[Reading]) -> list[Row]:
    best: dict[Model, dict[str, Reading]] = {}
    warnings: dict[Model, dict[str, None]] = {}
    for reading in readings:
        of_model = best.setdefault(reading.model, {})
        earlier = of_model.get(reading.key)
        both = earlier and earlier.columns and reading.columns and earlier.limit == reading.limit
        if earlier and both and earlier.columns != reading.columns:
            first, last = (one.columns.get(one.key, one.columns) for one in (earlier, reading))
            text = f"{reading.key} differs, {first} in {earlier.source} and {last} in {reading.source}"
            warnings.setdefault(reading.model, {})[text] = None
            logger.warning("%s: %s; the latter is kept", reading.model.names[0], text)
        if earlier is None or _quality(reading) >= _quality(earlier):
            of_model[reading.key] = reading
    names = distinct({model: model.names for model in best})
    tasks = _tasks(best.values())
    return [_row(names[model], list(best[model].values()), tasks, tuple(warnings.get(model, ()))) for model in best]


def _quality(reading: Reading) -> tuple[bool, bool, float]:
    """Return the sort key of readings with one key: a number, then a full run, then the highest limit."""
    return bool(reading.columns), reading.limit is None, float(reading.limit or 0)


def _tasks(rows: Iterable[dict[str, Reading]]) -> dict[str, set[str | None]]:
    """Return all tasks that have a score in some row, each with the limits of the runs whose scores are shown."""
    tasks: dict[str, set[str | None]] = {}
    for row in rows:
        for reading in row.values():
            if reading.task and reading.columns:
                tasks.setdefault(reading.task, set()).add(reading.limit)
    return tasks


def _row(name: str, readings: Sequence[Reading], tasks: dict[str, set[str | None]], warnings: tuple[str, ...]) -> Row:
    columns = {column: value for reading in readings for column, value in reading.columns.items()}
    errors = {f"{column}_stderr" for column in columns} & columns.keys()
    cells: dict[str, Cell | None] = {
        column: Cell(value, columns.get(f"{column}_stderr"))
        for column, value in columns.items()
        if column not in errors
    }
    own = {reading.task for reading in readings}
    missing = [Missing(reading.key, "the log has no number") for reading in readings if not reading.columns]
    missing += [Missing(task, "no score in the logs") for task in tasks if task not in own]
    limits = {reading.task: reading.limit for reading in readings if reading.task}
    missing += [
        Missing("avg", f"{task} has another limit in other logs")
        for task in limits
        if limits[task] and tasks.get(task, set()) - {limits[task]}
    ]
    averaged = [cells.get(reading.key) for reading in readings if reading.averaged]
    whole = [cell for cell in averaged if cell]
    mean = None if len(whole) < len(averaged) or any(one.what in {*tasks, "avg"} for one in missing) else mean_of(whole)
    return Row(
        name,
        cells,
        average=mean.value if mean else None,
        average_stderr=mean.stderr if mean else None,
        missing=tuple(missing) or None,
        trial=describe_limits(limits),
        warnings=warnings,
    )
