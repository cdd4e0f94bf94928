"""Summarize the logs that users of ContextualAI's HALOs already have, with one row per model.

Column names are those of HALOs' ``evals/scripts/summarize_metrics.py``. This module also reads further metrics,
filters, several runs in a log, and logs of AlpacaEval alone. New evaluations do not need it, because they save typed
records.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from halos_eval.errors import BadInput
from halos_eval.reports.halos_logs import alpaca
from halos_eval.reports.halos_logs.lm_eval import LmEvalLog
from halos_eval.reports.halos_logs.text import Reading, clean_lines
from halos_eval.reports.results import Cell, Row

logger = logging.getLogger(__name__)


def read_logs(path: Path) -> list[Row]:
    """Return one row per model, sorted by name, from a log file or the ``*.log`` files of a directory.

    The columns, each only if it has a number: ``alpacaeval_lcwr``, ``alpacaeval_wr``, ``alpacaeval_wr_stderr``
    (percent), ``alpacaeval_n_total`` (comparisons), ``alpacaeval_avg_length`` (characters); per top-level task or
    group ``TASK-METRIC`` for the first filter, ``TASK-METRIC,FILTER`` for each further one, in lm_eval's unit, and the
    same with ``_stderr``; ``avg``, the mean of each task's first metric, rounded to four places, without metrics that
    are better when lower. If two readings differ, that of the last modified file is kept, with a warning.

    Raise BadInput if the path or its logs are missing, unreadable, or contain no score.
    """
    files = _log_files(path)
    texts = {file: clean_lines(_bytes_of(file)) for file in files}
    lm_eval = {file: LmEvalLog.read(lines, file.name) for file, lines in texts.items()}
    all_models = {model for log in lm_eval.values() for model in log.models}

    readings: list[Reading] = []
    for file, lines in texts.items():
        tables = alpaca.leaderboards(lines, file.name)
        found = lm_eval[file].readings + alpaca.readings(tables, file, lm_eval[file].models, all_models)
        if not found:
            logger.warning("%s: no score found", file.name)
        readings += found
    if not readings:
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


def _rows(readings: Iterable[Reading]) -> list[Row]:
    latest: dict[str, dict[str, Reading]] = {}
    for reading in readings:
        of_model = latest.setdefault(reading.model, {})
        earlier = of_model.get(reading.key)
        if earlier and earlier.columns != reading.columns:
            logger.warning(
                "%s: %s differs, %s in %s and %s in %s; the latter is kept",
                *(reading.model, reading.key),
                *(earlier.columns, earlier.source, reading.columns, reading.source),
            )
        of_model[reading.key] = reading
    return [_row(model, list(of_model.values())) for model, of_model in latest.items()]


def _row(model: str, readings: list[Reading]) -> Row:
    columns = {column: value for reading in readings for column, value in reading.columns.items()}
    errors = {f"{column}_stderr" for column in columns} & columns.keys()
    cells = {
        column: Cell(value, columns.get(f"{column}_stderr"))
        for column, value in columns.items()
        if column not in errors
    }
    averaged = [reading.columns[reading.key] for reading in readings if reading.averaged]
    mean = round(sum(averaged) / len(averaged), 4) if averaged else None
    return Row(model, cells, average=mean, missing=None)
