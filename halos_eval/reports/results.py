"""The typed result of a suite on a checkpoint: scores, the average, and the reason for each missing part.

The CSV, the terminal, the morning message and the verdict are made from these. A missing score is never shown as zero,
and only this module computes the average.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import TypeVar

from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.planning.plan import Plan
from halos_eval.reports import facts
from halos_eval.reports.remarks import UNREAD, answered_as, counts_of, trial_of, warnings_of
from halos_eval.reports.uncertainty import at_bound, bound_interval, error_of_mean, wilson
from halos_eval.stages.harness.results import BYPASS, NOT_SCORED, is_placeholder
from halos_eval.stages.judge.swapped import BOTH_ORDERS, FLIP_RATE
from halos_eval.storage import layout
from halos_eval.storage.records import Failure, Record, Score, readable, readable_all

Value = TypeVar("Value")
# alpaca_eval's metric -> HALOs' column
ALPACA_COLUMNS = {
    "length_controlled_winrate": "alpacaeval_lcwr",
    "win_rate": "alpacaeval_wr",
    "discrete_win_rate": "alpacaeval_discrete_wr",
}


FLIP_COLUMN = "alpacaeval_flip_rate"
"""Column of a judge that is asked in both orders; it has an interval instead of a standard error."""


@dataclass(frozen=True)
class Cell:
    """One score of a row."""

    value: float
    """In the tool's own unit: a fraction for lm_eval, percent for alpaca_eval."""
    stderr: float | None = None
    """Standard error in the same unit; None if the tool reports none."""
    interval: tuple[float, float] | None = None
    """Interval of 95 % of a score at its bound, which has no valid standard error; None for other scores."""
    filter: str = facts.NO_FILTER
    """lm_eval's filter that extracted the answers."""
    current: bool = True
    """Whether it is of the suite's present definition. If not, `halos_eval.reports.ranking` leaves it out."""

    @property
    def shown_stderr(self) -> float | None:
        """The standard error, or None if it is 0 only because the score is at its bound."""
        return None if at_bound(self.value, self.stderr) else self.stderr


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
    """The main judge's model."""
    average: float | None = None
    """Mean of one metric per task; None if a task lacks its metric, because the mean would not be comparable."""
    average_stderr: float | None = None
    """Standard error of the average of independent tasks; None unless each task has one."""
    missing: tuple[Missing, ...] | None = ()
    """All missing items; None if they are unknown, as for a log."""
    series: int | None = None
    """Number of the series: rows of one series were made with the same versions of the tools."""
    trial: str = ""
    """How the evaluation was limited, such as ``limit 100``; empty for a full run."""
    warnings: tuple[str, ...] = ()
    """Reasons why a score that is shown may mislead. A row with warnings can still be complete."""
    counts: Mapping[str, int | float] = field(default_factory=dict)
    """Numbers of cut, empty, truncated and unreadable items by column, see `remarks`."""
    judge_versions: tuple[str, ...] = ()
    """The names under which the judge's model answered; empty if they are unknown."""
    judges: Mapping[str, str] = field(default_factory=dict)
    """Models of the judges beside the main one, by label. Their columns end with @LABEL."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """The checkpoint's tags."""
    registered: datetime | None = None
    """UTC time of its registration; None if it is unknown."""
    evaluated: datetime | None = None
    """UTC time at which the newest of the results ended; None without a result."""
    gpu_hours: float | None = None
    """Hours times GPUs of the results; None if they are unknown."""
    price_usd: float | None = None
    """Price of the judgements; None without judgements, or if one price is unknown."""
    samples: Mapping[str, str] = field(default_factory=dict)
    """FINGERPRINT-DIGEST of each result with samples, by the title of its job."""
    gate: str = ""
    """Outcome of the policy's gate; empty without one."""
    suite: str = ""
    """Name of the suite; empty in tables without one."""
    items: Mapping[str, int] = field(default_factory=dict)
    """Numbers of documents, and of pairs, with a score, by column: TASK-n, alpacaeval_n."""
    stages: Mapping[str, str] = field(default_factory=dict)
    """By the title of a job: ``current FINGERPRINT``, ``not current FINGERPRINT``, ``missing``, ``unavailable``."""
    fingerprint: str | None = None
    """Digest of the fingerprints of the results that the row shows; None without one."""

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
    records: list[Record] = []
    further: dict[str, Record] = {}
    stale: set[str] = set()
    tasks: list[tuple[Record | None, str | None]] = []
    if ALPACA_EVAL in plan.unavailable or "judge" in {*outdated, *plan.left_out}:
        cells |= dict.fromkeys(ALPACA_COLUMNS.values())
    read = readable_all([job.record for job in plan.jobs], Record)
    for job, (record, damage) in zip(plan.jobs, read, strict=True):
        if job.stage == "judge":
            cells |= {labelled(column, job.label): None for column in ALPACA_COLUMNS.values()}
        if job.stage == "harness":
            tasks.append((None if job.title in outdated else record, job.metric))
        if record and job.title in outdated:
            missing.append(Missing(job.title, outdated[job.title]))
            stale.add(record.fingerprint)
        if record is None:
            missing.append(Missing(job.title, damage or why_missing(job.record)))
            continue
        missing += [Missing(labelled(one.what, job.label), one.reason) for one in shortfalls(record)]
        if job.label:
            further[job.label] = record
            continue
        records.append(record)
        if job.metric and _primary(record, job.metric) is None and not _not_averaged(record, job.metric):
            missing.append(Missing("avg", f"{job.title} has no {job.metric}, which the average needs"))
    missing += [Missing(part, why_unavailable(reason)) for part, reason in plan.unavailable.items()]
    missing += [Missing(title, why) for title, why in outdated.items() if title not in {job.title for job in plan.jobs}]
    missing += [Missing(part, "not requested") for part in plan.left_out]
    # Without a job for some task there is no average. AlpacaEval is not averaged.
    absent = {*plan.left_out, *plan.unavailable} - {ALPACA_EVAL, "sample", "judge"}
    tasks += [(None, None) for part in absent if not part.startswith(labelled("judge", ""))]
    found, clashes = joined(records, stale)
    mean = average(tasks)
    everything = [record for record, _ in read if record]
    return Row(
        plan.checkpoint.name,
        cells | found | beside(further, lambda record: cells_of_record(record, record.fingerprint not in stale)),
        next((model for record in records if (model := judge_of(record))), None),
        judge_versions=tuple(version for record in records for version in answered_as(record)),
        judges={label: model for label, record in further.items() if (model := judge_of(record))},
        average=mean.value if mean and not clashes else None,
        average_stderr=mean.stderr if mean and not clashes else None,
        missing=(*missing, *clashes),
        trial=trial_of(records),
        warnings=(*warnings_of(records, plan.warn_above), *warnings_beside(further, plan.warn_above)),
        counts=counts_of(records) | beside(further, lambda record: counts_of([record])),
        tags=plan.tags,
        registered=plan.registered,
        evaluated=facts.evaluated(everything),
        gpu_hours=facts.gpu_hours(everything),
        price_usd=facts.price(everything),
        suite=plan.suite,
        items=facts.items(records) | beside(further, lambda record: facts.items([record])),
        stages=_stages(plan, [record for record, _ in read], outdated),
        fingerprint=facts.fingerprint_of(everything),
        samples={
            job.title: name
            for job, (record, _) in zip(plan.jobs, read, strict=True)
            if record and (name := facts.samples_of(record))
        },
    )


def _stages(plan: Plan, records: Iterable[Record | None], outdated: Mapping[str, str]) -> dict[str, str]:
    """Return the status of each stage by title, also of those without a job. AlpacaEval has two stages."""

    def titles(parts: Iterable[str]) -> list[str]:
        return [title for part in parts for title in (("sample", "judge") if part == ALPACA_EVAL else (part,))]

    planned = {
        job.title: facts.stage_status(record, job.title in outdated)
        for job, record in zip(plan.jobs, records, strict=True)
    }
    absent = dict.fromkeys(titles(plan.unavailable), facts.UNAVAILABLE)
    absent |= dict.fromkeys([*outdated, *titles(plan.left_out)], facts.stage_status(None))
    return planned | {title: status for title, status in absent.items() if title not in planned}


def labelled(name: str, label: str | None) -> str:
    """Return the name of a column, or of a missing item, for a judge beside the main one; the name itself without."""
    return name if label is None else f"{name}@{label}"


def beside(further: Mapping[str, Record], values: Callable[[Record], Mapping[str, Value]]) -> dict[str, Value]:
    """Return the values of judges beside the main one by column."""
    return {
        labelled(column, label): value for label, record in further.items() for column, value in values(record).items()
    }


def warnings_beside(further: Mapping[str, Record], above: float) -> list[str]:
    """Return the warnings of judges beside the main one."""
    return [f"judge@{label}: {one}" for label, record in further.items() for one in warnings_of([record], above)]


def joined(records: Sequence[Record], stale: Collection[str] = ()) -> tuple[dict[str, Cell], list[Missing]]:
    """Return the cells of all records, and why there is no average if two records have the same column.

    A tag and one of its tasks have the same columns, for example. The first record's cell is shown, and the average
    would count the task twice. ``stale`` has the fingerprints of records that are not current.
    """
    cells: dict[str, Cell] = {}
    owners: dict[str, str] = {}
    clashes: dict[tuple[str, str], list[str]] = {}
    for record in records:
        title = record.task or record.stage
        for column, cell in cells_of_record(record, record.fingerprint not in stale).items():
            owner = owners.setdefault(column, title)
            if owner == title:
                cells[column] = cell
            else:
                clashes.setdefault((owner, title), []).append(column)
    return cells, [
        Missing("avg", f"{owner} and {title} both have {', '.join(columns)} (that of {owner} is shown)")
        for (owner, title), columns in clashes.items()
    ]


def average(tasks: Sequence[tuple[Record | None, str | None]]) -> Cell | None:
    """Return the mean over tasks, given as records with the chosen metric, rounded as in HALOs, with its error.

    Return None if a task has no record or lacks its metric, because the mean of the others would not be comparable.
    Tasks whose metrics, or whose chosen metric, are all better when lower (perplexity) are excluded.
    """
    found: list[Cell] = []
    for record, metric in tasks:
        if record is None:
            return None
        cell = _primary(record, metric)
        if cell is not None:
            found.append(cell)
        elif not _not_averaged(record, metric) and (metric or _gaps(record)):
            return None
    return mean_of(found)


def mean_of(cells: Sequence[Cell]) -> Cell | None:
    """Return the mean of independent scores, rounded as in HALOs, with its standard error if each score has one."""
    if not cells:
        return None
    mean = round(sum(cell.value for cell in cells) / len(cells), 4)
    return Cell(mean, error_of_mean([cell.shown_stderr for cell in cells]))


def cells_of(scores: Iterable[Score], items: int | None = None, missing: Iterable[str] = ()) -> dict[str, Cell]:
    """Return scores by column. The column of a metric's first filter is TASK-METRIC, as in HALOs' table.

    ``items`` is the number of independent items of each score, if known. ``missing`` names scores without a value as
    TASK-METRIC,FILTER, so that the score of another filter does not take the column of the first.
    """
    lost = dict.fromkeys(missing)
    cells: dict[str, Cell] = {}
    own = (score for score in scores if score.group is None)
    for score in sorted(own, key=lambda score: (score.task, score.metric, score.filter)):
        column = ALPACA_COLUMNS.get(score.metric) if score.task == ALPACA_EVAL else f"{score.task}-{score.metric}"
        if column is None:
            continue
        taken = column in cells or any(
            key.startswith(f"{column},") and key < f"{column},{score.filter}" for key in lost
        )
        interval = bound_interval(score.metric, score.value, score.stderr, score.clusters or items)
        cells[f"{column},{score.filter}" if taken else column] = Cell(score.value, score.stderr, interval, score.filter)
    return cells


def cells_of_record(record: Record, current: bool = True) -> dict[str, Cell]:
    """Return the cells of a record by column, without placeholders. The caller knows whether they are ``current``."""
    # A record of one task counts its items. That of a tag counts the items of all its tasks together.
    tasks = {score.task for score in record.scores if score.group is None}
    items = record.coverage.scored if len(tasks) == 1 else None
    cells = cells_of(real_scores(record), items, _gaps(record))
    for score in record.scores:
        if (score.task, score.metric) == (ALPACA_EVAL, FLIP_RATE):
            low, high = wilson(score.value / 100, round(record.details[BOTH_ORDERS]))
            cells[FLIP_COLUMN] = Cell(score.value, interval=(100 * low, 100 * high))
    return cells if current else {column: replace(cell, current=False) for column, cell in cells.items()}


def why_missing(record_url: str) -> str:
    """Return the reason why a stage has no record, from its failure note if any. Raise StoreError."""
    failure, damage = readable(layout.failure_beside(record_url), Failure)
    return f"{failure.error}: {failure.message}" if failure else damage or "no result (not run, or killed)"


def why_unavailable(reason: str) -> str:
    """Return the reason for an unavailable part, as it is shown."""
    return f"unavailable: {reason}"


def judge_of(record: Record) -> str | None:
    """Return the judge's model of a judge stage; None for other stages."""
    return record.provenance.inputs.get("judge_model")


def real_scores(record: Record) -> list[Score]:
    """Return the scores of a record without placeholders."""
    return [score for score in record.scores if not is_placeholder(score.metric, score.value)]


def _gaps(record: Record) -> dict[str, str]:
    """Return the missing metrics of a record with the reasons, also where an older record has lm_eval's placeholder."""
    return dict(record.missing) | {
        f"{score.task}-{score.metric},{score.filter}": NOT_SCORED
        for score in record.scores
        if score.group is None and score.metric == BYPASS
    }


def _primary(record: Record, metric: str | None) -> Cell | None:
    """Return the number of a task that enters the average: the suite's metric, else the first that lm_eval prints.

    A tag (arc, gpqa), and a group without a score of its own, has several tasks; their first metrics are averaged.
    """
    if record.stage != "harness":
        return None
    own = [score for score in real_scores(record) if score.group is None and score.higher_is_better is not False]
    if _gaps(record) and not metric:
        return None  # the missing metric may be the first, and another would not be comparable
    tasks = {score.task for score in own}
    if metric:
        name, _, filter_name = metric.partition(",")
        own = [score for score in own if score.metric == name and filter_name in {"", score.filter}]
        if {score.task for score in own} != tasks or any(_is_of(key, name, filter_name) for key in _gaps(record)):
            return None  # a member of a tag has no such metric
    first: dict[str, Cell] = {}
    for score in sorted(own, key=lambda score: (score.metric, score.filter)):
        first.setdefault(score.task, Cell(score.value, score.stderr))
    if not first:
        return None
    value = sum(cell.value for cell in first.values()) / len(first)
    return Cell(value, error_of_mean([cell.shown_stderr for cell in first.values()]))


def _not_averaged(record: Record, metric: str | None) -> bool:
    """Return whether a task has the metric that the suite chose, and it is better when lower."""
    name, _, filter_name = (metric or "").partition(",")
    own = [score for score in real_scores(record) if score.group is None]
    chosen = [score for score in own if score.metric == name and filter_name in {"", score.filter}]
    return (
        bool(chosen)
        and all(score.higher_is_better is False for score in chosen)
        and {score.task for score in chosen} == {score.task for score in own}
        and not any(_is_of(key, name, filter_name) for key in _gaps(record))
    )


def _is_of(key: str, metric: str, filter_name: str) -> bool:
    """Return whether ``key``, TASK-METRIC,FILTER, is of a metric, and of a filter if one is named."""
    task_and_metric, _, own_filter = key.partition(",")
    return task_and_metric.endswith(f"-{metric}") and filter_name in {"", own_filter}


def shortfalls(record: Record) -> list[Missing]:
    """Return the missing metrics of a record, by column. Unreadable judgements are counted, see `remarks`."""
    columns = ALPACA_COLUMNS | {FLIP_RATE: FLIP_COLUMN}
    own = {f"{ALPACA_EVAL}-{metric}": column for metric, column in columns.items()}
    return [Missing(own.get(metric, metric), reason) for metric, reason in _gaps(record).items() if metric != UNREAD]
