"""The summary table: one row for each checkpoint of a suite, made from plans and records.

Column names are HALOs' where HALOs has them (model_name, alpacaeval_lcwr, alpacaeval_wr, TASK-METRIC, avg). A cell is
empty where there is no score, and ``status`` says why; nothing is ever a zero that was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.errors import BadInput, StoreError
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.plan import Plan, read_plan
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, Score, read_failure, read_record

if TYPE_CHECKING:
    import pandas as pd

# alpaca_eval's metric -> HALOs' column
ALPACA_COLUMNS = {
    "length_controlled_winrate": "alpacaeval_lcwr",
    "win_rate": "alpacaeval_wr",
    "discrete_win_rate": "alpacaeval_discrete_wr",
}
JUDGE = "alpacaeval_judge"
FIRST = ["model_name", *ALPACA_COLUMNS.values(), JUDGE]
LAST = ["avg", "status"]
COMPLETE = "complete"
SEPARATOR = "; "
BOUNDS = {0, 1, 100}

Row = dict[str, str | float]


def summarize_store(root: str, suite: str | None = None) -> pd.DataFrame:
    """The table of ``suite`` from its plans; without a suite, of all records below ``root``, the newest of each task.

    Raises BadInput where there is nothing, StoreError.
    """
    if suite:
        plans = [
            plan for url in filesystem.find(filesystem.join(root, "plans", suite), ".json") if (plan := read_plan(url))
        ]
        rows = [row_of_plan(plan) for plan in plans]
    else:
        rows = rows_of_records(record for url in filesystem.find(root, layout.RECORD) if (record := read_record(url)))
    if not rows:
        raise BadInput(
            f"{root} holds no {'plan of ' + suite if suite else 'record'}: nothing has been evaluated there yet"
        )
    return table(rows)


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a table: names and AlpacaEval first, tasks by name, avg and status last. One row for each checkpoint."""
    import pandas as pd  # the tasks that only want a reason do without

    frame = pd.DataFrame(rows)
    tasks = sorted(column for column in frame.columns if column not in FIRST + LAST)
    order = [column for column in FIRST if column in frame] + tasks + [column for column in LAST if column in frame]
    return frame[order].sort_values("model_name", ignore_index=True)


def row_of_plan(plan: Plan) -> Row:
    """The row of one checkpoint, from what was planned for it and what is there."""
    row, troubles = scores_of_plan(plan)
    return row | {"status": status_of(troubles)}


def scores_of_plan(plan: Plan) -> tuple[Row, list[str]]:
    """The row of one checkpoint without its status, and what is missing in it, each with its reason."""
    row: Row = {"model_name": plan.checkpoint.name}
    troubles: list[str] = []
    primary: list[float] = []
    whole = not plan.left_out and not plan.unavailable.keys() - {ALPACA_EVAL}
    for job in plan.jobs:
        record, trouble = _read(job)
        if job.stage == "judge":
            row = {**dict.fromkeys(ALPACA_COLUMNS.values(), math.nan), **row}
        if record is None:
            troubles.append(f"{job.title}: {trouble}")
            whole = whole and job.stage != "harness"
            continue
        row |= _columns(record)
        troubles += _shortfalls(record)
        if job.stage == "harness":
            number = _primary(record, job.metric)
            primary += [] if number is None else [number]
            whole = whole and (number is not None or not (job.metric or record.missing))
            if number is None and job.metric:
                troubles.append(f"avg: {job.title} has no {job.metric} to be averaged")
    if ALPACA_EVAL in plan.unavailable:
        row = {**dict.fromkeys(ALPACA_COLUMNS.values(), math.nan), **row}
    troubles += [f"{part}: {cannot_be_had(reason)}" for part, reason in plan.unavailable.items()]
    troubles += [f"{part}: not asked for" for part in plan.left_out]
    return row | (_average(primary) if whole else {}), troubles


def rows_of_records(records: Iterable[Record]) -> list[Row]:
    """Rows from records alone: of each checkpoint's newest weights, the newest record of each stage and task."""
    newest: dict[str, dict[tuple[str, str | None], Record]] = {}
    weights: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record.provenance.ended, reverse=True):
        name, digest = record.checkpoint.name, record.checkpoint.digest
        # Outputs that came without a record of their sampling are known by the file's digest, not by the weights'.
        unsampled = record.identity.get("inputs", {}).get("outputs") == digest
        if unsampled or digest == weights.setdefault(name, digest):
            newest.setdefault(name, {}).setdefault((record.stage, record.task), record)
    tasks = {str(task) for found in newest.values() for stage, task in found if stage == "harness"}
    rows = []
    for name, found in sorted(newest.items()):
        row: Row = {"model_name": name}
        for record in found.values():
            row |= _columns(record)
        troubles = [trouble for record in found.values() for trouble in _shortfalls(record)]
        troubles += [f"{task}: no record" for task in sorted(tasks) if ("harness", task) not in found]
        harness = [record for record in found.values() if record.stage == "harness"]
        numbers = [number for record in harness if (number := _primary(record, None)) is not None]
        whole = len(harness) == len(tasks) and not any(record.missing for record in harness)
        rows.append(row | (_average(numbers) if whole else {}) | {"status": status_of(troubles)})
    return rows


def status_of(troubles: Sequence[str]) -> str:
    """The cell that says what is missing. A reason's own semicolons become commas: they separate the reasons."""
    return SEPARATOR.join(trouble.replace(SEPARATOR, ", ") for trouble in troubles) or COMPLETE


def troubles_of(status: str) -> list[str]:
    """What such a cell says is missing, each with its reason."""
    return [] if status == COMPLETE else status.split(SEPARATOR)


def shown_error(value: float, stderr: float | None) -> float | None:
    """The standard error to show beside a score; None where it is a 0 that is not true.

    All answers wrong, or all right, give the estimate 0, however few they are: the score is at its bound (1 of a
    fraction, 100 of a win rate), and its error is not known.
    """
    return None if stderr == 0 and value in BOUNDS else stderr


def _columns(record: Record) -> Row:
    """A record's scores, and which model has judged."""
    judge = record.provenance.inputs.get("judge_model")
    return columns_of_scores(record.scores) | ({JUDGE: judge} if judge else {})


def columns_of_scores(scores: Iterable[Score]) -> Row:
    """Scores as columns. The first filter of a metric has the bare name TASK-METRIC, as in HALOs' table."""
    row: Row = {}
    for score in sorted(
        (score for score in scores if score.group is None), key=lambda score: (score.task, score.metric, score.filter)
    ):
        column = ALPACA_COLUMNS.get(score.metric) if score.task == ALPACA_EVAL else f"{score.task}-{score.metric}"
        if column is None:
            continue
        if column in row:
            column = f"{column},{score.filter}"
        row[column] = score.value
        if score.stderr is not None:
            row[f"{column}_stderr"] = score.stderr
    return row


def _primary(record: Record, metric: str | None) -> float | None:
    """The one number of a task for ``avg``: the suite's choice, else the mean of what lm_eval prints first.

    A tag (arc, gpqa) has several tasks of its own; their first metrics are averaged. Lower-is-better metrics such as
    perplexity are no part of an average.
    """
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


def _average(primary: list[float]) -> Row:
    """The mean over tasks, rounded as HALOs does; none where a task is missing: it could not be compared."""
    return {"avg": round(sum(primary) / len(primary), 4)} if primary else {}


def _read(job: PlannedJob) -> tuple[Record | None, str]:
    """A job's record, or None and why. A damaged one costs its own cells only."""
    try:
        record = read_record(job.record)
        return record, "" if record else why_missing(job.record)
    except StoreError as error:
        return None, str(error)


def why_missing(record_url: str) -> str:
    """What is known of a stage that has no record. Raises StoreError."""
    failure = read_failure(layout.failure_beside(record_url))
    return f"{failure.error}: {failure.message}" if failure else "no result (not run, or killed)"


def cannot_be_had(reason: str) -> str:
    """What is said of a part that could not be planned."""
    return f"cannot be had: {reason}"


def _shortfalls(record: Record) -> list[str]:
    """What a record says is missing, under the names of the columns."""
    own = {f"alpaca_eval-{metric}": column for metric, column in ALPACA_COLUMNS.items()}
    return [f"{own.get(metric, metric)}: {reason}" for metric, reason in record.missing.items()]
