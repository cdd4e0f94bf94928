"""The result of a suite on a checkpoint, typed: scores, the average, and the reason for everything that is missing.

The CSV, the terminal, the morning message and the verdict are made of these. Nothing is ever a zero that was not
measured, and the average is decided here only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
    """Standard error in the same unit; None where the tool gives none."""

    @property
    def shown_stderr(self) -> float | None:
        """The standard error, or None where it is a 0 that is not true.

        All answers wrong, or all right, give the estimate 0, however few they are: the score is at its bound (1 of a
        fraction, 100 of a win rate), and its error is not known.
        """
        return None if self.stderr == 0 and self.value in BOUNDS else self.stderr


@dataclass(frozen=True)
class Missing:
    """Something that a row should have and has not."""

    what: str
    """A part of the suite, a stage, or a column."""
    reason: str
    """Why, with the remedy where there is one."""

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """One checkpoint."""

    checkpoint: str
    """Its name."""
    cells: Mapping[str, Cell | None] = field(default_factory=dict)
    """Scores by column, as HALOs calls it; None for one that should be there, whose reason is in ``missing``."""
    judge: str | None = None
    """The model that judged."""
    average: float | None = None
    """Mean of one metric for each task; None where a task lacks it, because it could not be compared."""
    missing: tuple[Missing, ...] | None = ()
    """Everything that is missing; None where nobody can tell, as in a log."""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.missing == ()


def row_of_plan(plan: Plan) -> Row:
    """Return the row of one checkpoint, from its plan and the records that are there. Raises StoreError."""
    cells: dict[str, Cell | None] = {}
    missing: list[Missing] = []
    tasks: list[tuple[Record | None, str | None]] = []
    judge = None
    if ALPACA_EVAL in plan.unavailable or any(job.stage == "judge" for job in plan.jobs):
        cells |= dict.fromkeys(ALPACA_COLUMNS.values())
    for job in plan.jobs:
        record, reason = _read(job)
        if job.stage == "harness":
            tasks.append((record, job.metric))
        if record is None:
            missing.append(Missing(job.title, reason))
            continue
        cells |= cells_of(record.scores)
        judge = judge or _judge(record)
        missing += _shortfalls(record)
        if job.metric and _primary(record, job.metric) is None:
            missing.append(Missing("avg", f"{job.title} has no {job.metric} to be averaged"))
    missing += [Missing(part, why_unavailable(reason)) for part, reason in plan.unavailable.items()]
    missing += [Missing(part, "not asked for") for part in plan.left_out]
    # A part without a job leaves no average, unless it is AlpacaEval, which has no part in it.
    tasks += [(None, None) for part in (*plan.left_out, *(plan.unavailable.keys() - {ALPACA_EVAL}))]
    return Row(plan.checkpoint.name, cells, judge, average(tasks), tuple(missing))


def rows_of_records(records: Iterable[Record]) -> list[Row]:
    """Return rows from records alone: of each checkpoint's newest weights, the newest record of each stage and task."""
    newest: dict[str, dict[tuple[str, str | None], Record]] = {}
    weights: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record.provenance.ended, reverse=True):
        name, digest = record.checkpoint.name, record.checkpoint.digest
        # Outputs that came without a record of their sampling are known by the file's digest, not by the weights'.
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
    """Return the mean over tasks, given as their records with the metric that counts; rounded as HALOs does.

    None where a task has no record or lacks its metric: the others' mean could not be compared. A task whose metrics
    are all better when lower (perplexity) has no part in it.
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
    """Return scores by column. The first filter of a metric has the bare name TASK-METRIC, as in HALOs' table."""
    cells: dict[str, Cell] = {}
    own = (score for score in scores if score.group is None)
    for score in sorted(own, key=lambda score: (score.task, score.metric, score.filter)):
        column = ALPACA_COLUMNS.get(score.metric) if score.task == ALPACA_EVAL else f"{score.task}-{score.metric}"
        if column is None:
            continue
        cells[f"{column},{score.filter}" if column in cells else column] = Cell(score.value, score.stderr)
    return cells


def why_missing(record_url: str) -> str:
    """Return why a stage has no record, as far as anybody knows. Raises StoreError."""
    failure = read_failure(layout.failure_beside(record_url))
    return f"{failure.error}: {failure.message}" if failure else "no result (not run, or killed)"


def why_unavailable(reason: str) -> str:
    """Return the reason for a part that could not be planned."""
    return f"unavailable: {reason}"


def _read(job: PlannedJob) -> tuple[Record | None, str]:
    """A job's record, or None and why. A damaged one costs its own cells only."""
    try:
        record = read_record(job.record)
        return record, "" if record else why_missing(job.record)
    except StoreError as error:
        return None, str(error)


def _judge(record: Record) -> str | None:
    return record.provenance.inputs.get("judge_model")


def _primary(record: Record, metric: str | None) -> float | None:
    """The one number of a task for the average: the suite's choice, else the mean of what lm_eval prints first.

    A tag (arc, gpqa) has several tasks of its own; their first metrics are averaged.
    """
    if record.stage != "harness":
        return None
    own = [score for score in record.scores if score.group is None and score.higher_is_better is not False]
    if record.missing and not metric:
        return None  # what is missing may be the first: another in its place could not be compared
    if metric:
        name, _, filter_name = metric.partition(",")
        own = [score for score in own if score.metric == name and filter_name in {"", score.filter}]
    first: dict[str, float] = {}
    for score in sorted(own, key=lambda score: (score.metric, score.filter)):
        first.setdefault(score.task, score.value)
    return sum(first.values()) / len(first) if first else None


def _shortfalls(record: Record) -> list[Missing]:
    """What a record says is missing, under the names of the columns."""
    own = {f"{ALPACA_EVAL}-{metric}": column for metric, column in ALPACA_COLUMNS.items()}
    return [Missing(own.get(metric, metric), reason) for metric, reason in record.missing.items()]
