"""Read scores from a log of lm_eval.

Source of the format: EleutherAI/lm-evaluation-harness, ``utils.make_table`` and the line that its command prints above
the tables, versions 0.4.0 to 0.4.13. Columns are found by name, because 0.4.3 inserted one in the middle.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from halos_eval.reports.halos_logs.models import Model, limit_in_header, mentioned_model, model_in_arguments
from halos_eval.reports.halos_logs.text import Reading, number
from halos_eval.stages.harness.results import BYPASS, is_placeholder

logger = logging.getLogger(__name__)

# Metrics that older tables, which print no direction, must not average with accuracies.
_LOWER_IS_BETTER = frozenset({"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"})


@dataclass(frozen=True)
class _Table:
    """The columns of one table."""

    names: tuple[str, ...]
    """From left to right; the task's is ``Task``, the direction's ``Direction``, that of the ± sign is empty."""

    @classmethod
    def below(cls, line: str) -> Self | None:
        """Return the table with this line as its header, or None if it is not a header."""
        cells = [cell.strip() for cell in line.split("|")]
        for start, cell in enumerate(cells):
            names = cells[start + 1 : -1]
            if cell in {"Tasks", "Groups"} and {"Filter", "Metric", "Value", "Stderr"} <= set(names):
                before_value = names.index("Value") - 1
                names[before_value] = names[before_value] or "Direction"
                return cls(("Task", *names))
        return None

    def row(self, line: str) -> dict[str, str] | None:
        """Return the cells by column name, or None if the line is not a row.

        Cells are counted from the right, because lines may start with a timestamp or a rank.
        """
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < len(self.names) + 2:
            return None
        row = dict(zip(self.names, cells[-len(self.names) - 1 : -1], strict=True))
        row["Task"] = line.split("|")[-len(self.names) - 1]  # with the spaces before it, which tell its depth
        signs = row.pop("", "") + row.get("Direction", "")
        return None if re.search(r"[0-9A-Za-z]", signs) else row


@dataclass
class _Task:
    """The task or group whose rows are read."""

    name: str
    depth: int
    """0 for a task of the command line; one more for each group above it."""
    metrics: set[str] = field(default_factory=set)
    """Metrics that have been read."""


@dataclass
class LmEvalLog:
    """The models and readings that one pass over the lines of a log found."""

    source: str
    models: set[Model] = field(default_factory=set)
    readings: list[Reading] = field(default_factory=list)
    _model: Model | None = None
    _limit: str | None = None
    _has_header: bool = False
    _table: _Table | None = None
    _task: _Task | None = None
    _scored_depth: int | None = None
    """Depth of the group above the current task that has a score, which is the aggregate of all tasks below it."""
    _lost: bool = False
    """Whether it is unknown if the group above the current task has a score."""

    @classmethod
    def read(cls, lines: Iterable[str], source: str) -> Self:
        """Read all lines. Skip tables and rows whose model or task is unknown, with a warning."""
        log = cls(source)
        for line in lines:
            if not log._take_model(line):
                log._take_table(line)
        return log

    def _take_model(self, line: str) -> bool:
        """Return whether the line names the model of the tables below it, and remember that model.

        lm_eval prints the model's arguments above its tables. This text may follow other text on its line, because a
        progress bar on stderr often ends without a line break. In a log without such text (the user's own script
        printed the tables) any other mention counts, as in HALOs' summarize_metrics.py, except shell variables.
        """
        arguments, is_header, rest = line.partition("), gen_kwargs: (")
        if is_header:
            self._model, self._limit, self._has_header = model_in_arguments(arguments), limit_in_header(rest), True
        elif not self._has_header and (mention := mentioned_model(line)):
            self._model = mention
        else:
            return False
        self._table = None
        if self._model:
            self.models.add(self._model)
        return True

    def _take_table(self, line: str) -> None:
        if table := _Table.below(line):
            self._table, self._task, self._scored_depth, self._lost = table, None, None, False
            if self._model is None:
                logger.warning("%s: skipped an lm_eval table: no line above it names its model", self.source)
            return
        row = self._table.row(line) if self._table else None
        if row is None:
            # Lines in between may have replaced the row that names the task of the rows below.
            # If that was a group, the tasks below it are most likely its parts.
            self._lost = self._lost or self._scored_depth is None
            self._task, self._scored_depth = None, 0
        elif self._model and set(row["Task"].strip()) != {"-"}:
            self._take_row(row, self._model)

    def _take_row(self, row: dict[str, str], model: Model) -> None:
        metric = row["Metric"]
        if row["Task"].strip():
            self._begin(row["Task"])
        task = self._task
        if task is None:
            logger.warning("%s: skipped a row of metric %r: its task is unknown", self.source, metric)
            return
        if not metric:
            return  # a group without a score of its own
        if self._scored_depth is not None and task.depth > self._scored_depth:
            if self._lost:
                logger.warning("%s: skipped a row of task %r: that of its group is unknown", self.source, task.name)
            return  # a part of a group whose own row has the aggregate
        self._scored_depth = task.depth
        value, stderr = number(row["Value"]), number(row["Stderr"])
        falling = "↓" in row.get("Direction", "") or metric in _LOWER_IS_BETTER
        if value is not None and is_placeholder(metric, value):
            if metric != BYPASS:
                return
            value = None
        column = f"{task.name}-{metric},{row['Filter']}" if metric in task.metrics else f"{task.name}-{metric}"
        averaged = not task.metrics and not falling
        task.metrics.add(metric)
        columns = {} if value is None else {column: value}
        if value is not None and stderr is not None:
            columns[f"{column}_stderr"] = stderr
        self.readings.append(Reading(model, column, columns, averaged, self.source, task.name, self._limit))

    def _begin(self, cell: str) -> None:
        """Begin a task. lm_eval indents it, and puts a dash before it, for each group above it."""
        name = cell.strip()
        depth = len(cell) - len(cell.lstrip()) if name.startswith("- ") else 0
        self._task = _Task(name.removeprefix("- "), depth)
        if self._scored_depth is not None and depth <= self._scored_depth:
            self._scored_depth, self._lost = None, False
