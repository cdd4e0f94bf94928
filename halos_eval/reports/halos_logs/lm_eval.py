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

from halos_eval.checkpoints.weights import short_name
from halos_eval.reports.halos_logs.text import Reading, number

logger = logging.getLogger(__name__)

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
# An echoed command, or lm_eval's own "Initializing hf model, with arguments: {...}".
_MENTION = re.compile(rf"""(?<!\w)pretrained(?:['"]\s*:\s*|=)({_QUOTED}|[^,\s'")]+)""")
# Metrics that older tables, which print no direction, must not average with accuracies.
_LOWER_IS_BETTER = frozenset({"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"})


def _unquoted(text: str) -> str:
    quoted = re.fullmatch(_QUOTED, text.strip())
    return re.sub(r"\\(.)", r"\1", quoted[0][1:-1]) if quoted else text


def model_in_arguments(arguments: str) -> str | None:
    """Return the short name of the model in lm_eval's model arguments, or None if they name no model.

    Both styles are supported: ``pretrained=/a/b/FINAL,dtype=...`` and the printed dictionary of newer versions. Models
    behind an API have ``model`` instead of ``pretrained``.
    """
    for key in ("pretrained", "model"):
        in_dictionary = re.search(rf"""['"]{key}['"]\s*:\s*({_QUOTED})""", arguments)
        in_list = re.search(rf"(?<!\w){key}=([^,]+)", arguments)
        if found := in_dictionary or in_list:
            return short_name(_unquoted(found[1]).strip())
    return None


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
        signs = row.pop("", "") + row.get("Direction", "")
        return None if re.search(r"[0-9A-Za-z]", signs) else row


@dataclass
class LmEvalLog:
    """The models and readings that one pass over the lines of a log found."""

    source: str
    models: set[str] = field(default_factory=set)
    readings: list[Reading] = field(default_factory=list)
    _model: str | None = None
    _has_header: bool = False
    _table: _Table | None = None
    _task: str | None = None
    _metrics: set[str] = field(default_factory=set)

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
        arguments, is_header, _ = line.partition("), gen_kwargs: (")
        if is_header:
            self._model, self._has_header = model_in_arguments(arguments), True
        elif not self._has_header and (mention := _MENTION.search(line)) and "$" not in mention[1]:
            self._model = short_name(_unquoted(mention[1]).strip())
        else:
            return False
        self._table = None
        if self._model:
            self.models.add(self._model)
        return True

    def _take_table(self, line: str) -> None:
        if table := _Table.below(line):
            self._table, self._task = table, None
            if self._model is None:
                logger.warning("%s: skipped an lm_eval table: no line above it names its model", self.source)
            return
        row = self._table.row(line) if self._table else None
        if row is None:
            # Lines in between may have replaced the row that names the task of the rows below.
            self._task = None
        elif self._model and set(row["Task"]) != {"-"}:
            self._take_row(row, self._model)

    def _take_row(self, row: dict[str, str], model: str) -> None:
        metric, first_of_task = row["Metric"], bool(row["Task"])
        if first_of_task:
            self._task, self._metrics = row["Task"], set()
        if self._task is None:
            logger.warning("%s: skipped a row of metric %r: its task is unknown", self.source, metric)
            return
        if self._task.startswith("- "):  # part of a group; the group's own row has the aggregate
            return
        column = f"{self._task}-{metric},{row['Filter']}" if metric in self._metrics else f"{self._task}-{metric}"
        self._metrics.add(metric)
        value, stderr = number(row["Value"]), number(row["Stderr"])
        if value is None:
            return
        columns = {column: value} if stderr is None else {column: value, f"{column}_stderr": stderr}
        falling = "↓" in row.get("Direction", "") or metric in _LOWER_IS_BETTER
        self.readings.append(Reading(model, column, columns, first_of_task and not falling, self.source))
