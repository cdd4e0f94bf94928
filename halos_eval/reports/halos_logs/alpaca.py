"""Read scores from a log of alpaca_eval.

Source of the format: tatsu-lab/alpaca_eval 0.6.6, ``utils.print_leaderboard`` (``DataFrame.to_string``) and the two
INFO lines of ``main.evaluate`` that name the model. The table is a leaderboard: most of its rows are published models.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import PurePath

from halos_eval.checkpoints.weights import short_name
from halos_eval.reports.halos_logs.models import Model
from halos_eval.reports.halos_logs.text import Reading, number
from halos_eval.reports.names import Known, clean, match
from halos_eval.untrusted import shown_name

logger = logging.getLogger(__name__)

# The leaderboard is sorted by its first column; AlpacaEval 1 sorts by win_rate and prints it once.
_HEADER = re.compile(
    r"(?<!\S)(?:[a-z_]*(?:winrate|win_rate|elo)\s+)?win_rate\s+standard_error\s+n_total(?:\s+\w+)*\s*$"
)
_EVALUATED = re.compile(r"Evaluating the (.+) outputs\.")
_SKIPPED = re.compile(r"Skipping evaluation of (.+) as it is already in the precomputed leaderboard")
_COLUMNS = {
    "length_controlled_winrate": "alpacaeval_lcwr",
    "win_rate": "alpacaeval_wr",
    "standard_error": "alpacaeval_wr_stderr",
    "n_total": "alpacaeval_n_total",
    "avg_length": "alpacaeval_avg_length",
}
# Words that users add to a model's name in the name of its AlpacaEval log.
_LOG_WORDS = re.compile(r"^alpaca[-_]?(?:eval)?2?[-_.]+|[-_.]+alpaca[-_]?(?:eval)?2?$", re.IGNORECASE)


@dataclass
class Leaderboard:
    """One printed table."""

    announced: frozenset[str]
    """Models that the INFO lines above it name."""
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    """Row name to values by this project's columns. Cells without a number are skipped."""

    def evaluated(self, lm_eval_models: Set[Model], stem: str, other_models: Set[Model]) -> list[str] | None:
        """Return the row names of the models that this log evaluated, or None if they are unknown.

        The first evidence in this list that matches applies: the models of the log's own lm_eval runs and of the INFO
        lines; a table of one row; names that are paths (HALOs' always are, those of published models never); the log's
        file name; models of the other logs' lm_eval runs.
        """
        stems = {stem.lower(), _LOG_WORDS.sub("", stem).lower()}
        locations = {model.location for model in lm_eval_models}
        own, others = ({short_name(model.location) for model in models} for models in (lm_eval_models, other_models))
        evidence = (
            [name for name in self.rows if name in self.announced or clean(name) in locations],
            [name for name in self.rows if short_name(name) in own],
            list(self.rows) if len(self.rows) == 1 else [],
            [name for name in self.rows if "/" in name],
            [name for name in self.rows if name.lower() in stems],
            [name for name in self.rows if short_name(name) in others],
        )
        return next((names for names in evidence if names), None)


def leaderboards(lines: Iterable[str], source: str) -> list[Leaderboard]:
    """Return all tables of a log, in order."""
    tables: list[Leaderboard] = []
    announced: set[str] = set()
    header: re.Match[str] | None = None
    for line in lines:
        if found := _HEADER.search(line):
            header = found
            tables.append(Leaderboard(frozenset(announced)))
            announced.clear()
        elif header and (row := _row(line, header)):
            tables[-1].rows[row[0]] = row[1]
        else:
            header = None
            if skipped := _SKIPPED.search(line):
                logger.warning("%s: alpaca_eval skipped %s, so its scores are from an earlier run", source, skipped[1])
            announced.update(match[1] for match in (_EVALUATED.search(line), skipped) if match)
    return [table for table in tables if table.rows]


def _row(line: str, header: re.Match[str]) -> tuple[str, dict[str, float]] | None:
    """Return the name and values of a row, or None for a line that is not a row, which ends the table.

    Cells are read from the right, because a name may contain spaces, unless each line starts with a timestamp.
    """
    columns = header[0].split()
    parts = line.strip().rsplit(None, len(columns))
    if len(parts) != len(columns) + 1:
        return None
    cells = {_COLUMNS[column]: cell for column, cell in zip(columns, parts[1:], strict=True) if column in _COLUMNS}
    values = {column: value for column, cell in cells.items() if (value := number(cell)) is not None}
    if any(cells[column] != "NaN" for column in cells.keys() - values.keys()):
        return None
    has_prefix = bool(header.string[: header.start()].strip())
    return (parts[0].split()[-1] if has_prefix else parts[0]), values


def readings(
    tables: Iterable[Leaderboard], source: PurePath, lm_eval_models: Set[Model], other_models: Set[Model]
) -> list[Reading]:
    """Return the scores of the evaluated models, each from the row with its name.

    If the evaluated model is unknown, all rows are kept under their own names, with a warning. No score is lost, and no
    model gets another's score. A name that means one model of an lm_eval run is that model.
    """
    found: list[Reading] = []
    for table in tables:
        names = table.evaluated(lm_eval_models, source.stem, other_models)
        if names is None:
            logger.warning(
                "%s: unknown which of %d AlpacaEval rows this log evaluated; all are kept. Rename the log to the row's "
                "name, or remove the other rows",
                shown_name(source.name),
                len(table.rows),
            )
        found += [
            Reading(
                _model(name, lm_eval_models) or _model(name, other_models) or Model(clean(name)),
                *("alpacaeval", table.rows[name]),
                averaged=False,
                source=shown_name(source.name),
            )
            for name in names or table.rows
            if table.rows[name]
        ]
    return found


def _model(name: str, models: Set[Model]) -> Model | None:
    return match(name, {model: Known(model.location, model.location) for model in models})
