"""The typed result of a suite on a checkpoint: scores, the average, and the reason for each missing part.

The CSV, the terminal, the morning message and the verdict are made from these. A missing score is never shown as zero,
and only this module computes the average.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.errors import StoreError
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.plan import Plan
from halos_eval.storage import layout
from halos_eval.storage.records import Record, Score, read_failure, read_record

# alpaca_eval's metric -> HALOs' column
ALPACA_COLUMNS = {
    "length_controlled_winrate": "alpacaeval_lcwr",
    "win_rate": "alpacaeval_wr",
    "discrete_win_rate": "alpacaeval_discrete_wr",
}
BOUNDS = {0, 1, 100}


@dataclass(frozen=True)
class Cell:
    """One score of a row."""

    value: float
    """In the tool's own unit: a fraction for lm_eval, percent for alpaca_eval."""
    stderr: float | None = None
    """Standard error in the same unit; None if the tool reports none."""

    @property
    def shown_stderr(self) -> float | None:
        """The standard error, or None if it is 0 only because the score is at its bound.

        If all answers are wrong or all are right, the estimate is 0, however few there are. The score is then at its
        bound (0, 1 for a fraction, 100 for a win rate), and its error is unknown.
        """
        return None if self.stderr == 0 and self.value in BOUNDS else self.stderr


@dataclass(frozen=True)
class Missing:
    """A missing item of a row, with the reason."""

    what: str
    """A part of the suite, a stage, or a column."""
    reason: str
    """The reason, with the fix if there is one."""

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """The results of one checkpoint."""

    checkpoint: str
    """Its name."""
    cells: Mapping[str, Cell | None] = field(default_factory=dict)
    """Scores by HALOs' column names; None for an expected score that is missing, with its reason in ``missing``."""
    judge: str | None = None
    """The judge's model."""
    average: float | None = None
    """Mean of one metric per task; None if a task lacks its metric, because the mean would not be comparable."""
    missing: tuple[Missing, ...] | None = ()
    """All missing items; None if they are unknown, as for a log."""
    series: int | None = None
    """Number of the series: rows of one series were made with the same versions of the tools."""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.missing == ()


def row_of_plan(plan: Plan, outdated: Mapping[str, str] = MappingProxyType({})) -> Row:
    """Return the row of one checkpoint, from its plan and the existing records. Raise StoreError.

    ``outdated`` has the titles of jobs whose record is not current, with the reasons.
    """
    cells: dict[str, Cell | None] = {}
    missing: list[Missing] = []
    tasks: list[tuple[Record | None, str | None]] = []
    judge = None
    if ALPACA_EVAL in plan.unavailable or any(job.stage == "judge" for job in plan.jobs):
        cells |= dict.fromkeys(ALPACA_COLUMNS.values())
    for job in plan.jobs:
        record, reason = _read(job)
        if job.stage == "harness":
            tasks.append((None if job.title in outdated else record, job.metric))
        if record and job.title in outdated:
            missing.append(Missing(job.title, outdated[job.title]))
        if record is None:
            missing.append(Missing(job.title, reason))
            continue
        cells |= cells_of(record.scores)
        judge = judge or _judge(record)
        missing += _shortfalls(record)
        if job.metric and _primary(record, job.metric) is None:
            missing.append(Missing("avg", f"{job.title} has no {job.metric}, which the average needs"))
    missing += [Missing(part, why_unavailable(reason)) for part, reason in plan.unavailable.items()]
    missing += [Missing(part, "not requested") for part in plan.left_out]
    # Without a job for some task there is no average. AlpacaEval is not averaged.
    tasks += [(None, None) for part in {*plan.left_out, *plan.unavailable} - {ALPACA_EVAL, "judge"}]
    return Row(plan.checkpoint.name, cells, judge, average(tasks), tuple(missing))


def rows_of_records(records: Iterable[Record]) -> list[Row]:
    """Return rows from records alone: the newest of each stage and task, for each checkpoint's newest weights."""
    newest: dict[str, dict[tuple[str, str | None], Record]] = {}
    weights: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record.provenance.ended, reverse=True):
        name, digest = record.checkpoint.name, record.checkpoint.digest
        # Outputs without a record of the sample stage have the file's digest instead of the weights'.
        unsampled = record.identity.get("inputs", {}).get("outputs") == digest
        if unsampled or digest == weights.setdefault(name, digest):
            newest.setdefault(name, {}).setdefault((record.stage, record.task), record)
    tasks = sorted({str(task) for found in newest.values() for stage, task in found if stage == "harness"})
    return [_row_of_records(name, newest[name], tasks) for name in sorted(newest)]


def _row_of_records(name: str, found: Mapping[tuple[str, str | None], Record], tasks: Sequence[str]) -> Row:
    cells: dict[str, Cell | None] = {}
    for record in found.values():
        cells |= cells_of(record.scores)
    missing = [shortfall for record in found.values() for shortfall in _shortfalls(record)]
    missing += [Missing(task, "no record") for task in tasks if ("harness", task) not in found]
    judges = (judge for record in found.values() if (judge := _judge(record)))
    mean = average([(found.get(("harness", task)), None) for task in tasks])
    return Row(name, cells, next(judges, None), mean, tuple(missing))


def average(tasks: Sequence[tuple[Record | None, str | None]]) -> float | None:
    """Return the mean over tasks, given as records with the chosen metric, rounded as in HALOs.

    Return None if a task has no record or lacks its metric, because the mean of the others would not be comparable.
    Tasks whose metrics are all better when lower (perplexity) are excluded.
    """
    numbers: list[float] = []
    for record, metric in tasks:
        if record is None:
            return None
        number = _primary(record, metric)
        if number is not None:
            numbers.append(number)
        elif metric or record.missing:
            return None
    return round(sum(numbers) / len(numbers), 4) if numbers else None


def cells_of(scores: Iterable[Score]) -> dict[str, Cell]:
    """Return scores by column. The column of a metric's first filter is TASK-METRIC, as in HALOs' table."""
    cells: dict[str, Cell] = {}
    own = (score for score in scores if score.group is None)
    for score in sorted(own, key=lambda score: (score.task, score.metric, score.filter)):
        column = ALPACA_COLUMNS.get(score.metric) if score.task == ALPACA_EVAL else f"{score.task}-{score.metric}"
        if column is None:
            continue
        cells[f"{column},{score.filter}" if column in cells else column] = Cell(score.value, score.stderr)
    return cells


def why_missing(record_url: str) -> str:
    """Return the reason why a stage has no record, from its failure note if any. Raise StoreError."""
    failure = read_failure(layout.failure_beside(record_url))
    return f"{failure.error}: {failure.message}" if failure else "no result (not run, or killed)"


def why_unavailable(reason: str) -> str:
    """Return the reason for an unavailable part, as it is shown."""
    return f"unavailable: {reason}"


def _read(job: PlannedJob) -> tuple[Record | None, str]:
    """Return a job's record, or None and the reason. If it is damaged, only its own cells are empty."""
    try:
        record = read_record(job.record)
        return record, "" if record else why_missing(job.record)
    except StoreError as error:
        return None, str(error)


def _judge(record: Record) -> str | None:
    return record.provenance.inputs.get("judge_model")


def _primary(record: Record, metric: str | None) -> float | None:
    """Return the number of a task that enters the average: the suite's metric, else the first that lm_eval prints.

    A tag (arc, gpqa) has several tasks; their first metrics are averaged.
    """
    if record.stage != "harness":
        return None
    own = [score for score in record.scores if score.group is None and score.higher_is_better is not False]
    if record.missing and not metric:
        return None  # the missing metric may be the first, and another would not be comparable
    if metric:
        name, _, filter_name = metric.partition(",")
        own = [score for score in own if score.metric == name and filter_name in {"", score.filter}]
    first: dict[str, float] = {}
    for score in sorted(own, key=lambda score: (score.metric, score.filter)):
        first.setdefault(score.task, score.value)
    return sum(first.values()) / len(first) if first else None


def _shortfalls(record: Record) -> list[Missing]:
    """Return the missing metrics of a record, by column."""
    own = {f"{ALPACA_EVAL}-{metric}": column for metric, column in ALPACA_COLUMNS.items()}
    return [Missing(own.get(metric, metric), reason) for metric, reason in record.missing.items()]
