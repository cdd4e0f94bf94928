"""The items of one result for a comparison: a value, a cluster and short texts for each id."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from halos_eval.digests import digest_bytes
from halos_eval.errors import EvaluationFailed
from halos_eval.reports.items import Item, annotations_of, items_of, pair_id
from halos_eval.reports.results import real_scores
from halos_eval.storage.records import Record, Score

SHOWN = 300
"""Characters of a text that are kept."""
WIN_RATE = "win_rate"
PERCENT = 100.0


class Value(NamedTuple):
    """One item."""

    value: float
    """Its score, in the metric's unit."""
    cluster: str
    """Items with the same text depend on each other."""
    digest: str
    """Digest of what was asked."""
    prompt: str
    reference: str
    answer: str


class Average(StrEnum):
    """How a score is made of the values of its items."""

    DOCUMENTS = "mean of all documents"
    TASKS = "mean of the tasks' means"


class Measured(NamedTuple):
    """The items of a result with the metric that they are values of."""

    metric: str
    """Metric and, after a comma, its filter."""
    items: dict[str, Value]
    """By id."""
    averages: frozenset[Average]
    """The ways in which the score can be made of these items: both if all tasks have as many."""
    span: float | None
    """Largest possible difference of two values: 100 for percent; None if only the values themselves tell."""
    sign: int
    """1 if a higher value is better, -1 if a lower one is."""
    draw: float | None = None
    """Value at which neither side of a judgement wins; None if the values are no judgements."""


def measured(url: str, record: Record, metric: str | None) -> Measured:
    """Return the items of a record. ``metric`` is the suite's, None stands for the first that lm_eval prints.

    Raise StoreError, and EvaluationFailed if the score is not the mean of values of single items.
    """
    if record.stage == "judge":
        pairs = dict(_pairs(annotations_of(url, record)))
        return Measured(WIN_RATE, pairs, frozenset({Average.DOCUMENTS}), PERCENT, 1, draw=PERCENT / 2)
    chosen = _chosen(record, metric)
    first = chosen[0]
    of = {score.task: score for score in chosen}
    values: dict[str, Value] = {}
    for item in items_of(url, record):
        score = of.get(item.task, first)
        if item.filter == score.filter:
            values.update(_values(item, item.scores.get(score.metric, ())))
    if not values:
        raise EvaluationFailed(f"{first.metric},{first.filter} has no value for each document")
    averages = averages_of(values, [score.value for score in chosen])
    if not averages:
        raise EvaluationFailed(f"{first.metric},{first.filter} is not the mean of its documents' values")
    return Measured(
        metric=first.metric if first.filter == "none" else f"{first.metric},{first.filter}",
        items=values,
        averages=averages,
        span=None,
        sign=-1 if first.higher_is_better is False else 1,
    )


def short(text: str, end: bool = False) -> str:
    """Return the start, or the ``end``, of a text on one line, without control characters."""
    line = " ".join(text.split())
    line = line if len(line) <= SHOWN else f"...{line[-SHOWN:]}" if end else f"{line[:SHOWN]}..."
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in line)


def _chosen(record: Record, metric: str | None) -> list[Score]:
    """Return the score of the task, or one for each task of a tag: the suite's metric, else the first."""
    own = [score for score in real_scores(record) if score.group is None]
    if metric:
        name, _, filter_name = metric.partition(",")
        own = [score for score in own if score.metric == name and filter_name in {"", score.filter}]
    else:
        own = [score for score in own if score.higher_is_better is not False]
    first: dict[str, Score] = {}
    for score in sorted(own, key=lambda score: (score.metric, score.filter)):
        first.setdefault(score.task, score)
    if not first:
        raise EvaluationFailed("no score that is better when higher" if not metric else f"no {metric}")
    return list(first.values())


def _values(item: Item, values: Sequence[float]) -> Iterator[tuple[str, Value]]:
    texts = short(item.prompt, end=True), short(item.reference), short(item.answer)
    for number, value in enumerate(values):
        key = item.id if len(values) == 1 else f"{item.id}#{number}"
        yield key, Value(value, item.cluster, item.digest, *texts)


def averages_of(values: Mapping[str, Value], scores: Sequence[float]) -> frozenset[Average]:
    """Return how the mean of ``scores``, one or those of a tag's tasks, is made of the values; nothing if it is not.

    lm_eval's mean of a group is over its documents or over its tasks; that of a tag's scores is over its tasks.
    """
    tasks: dict[str, list[float]] = {}
    for key, one in values.items():
        tasks.setdefault(task_of(key), []).append(one.value)
    means = {
        Average.DOCUMENTS: _mean([value for own in tasks.values() for value in own]),
        Average.TASKS: _mean(list(map(_mean, tasks.values()))),
    }
    found = {one for one, mean in means.items() if math.isclose(mean, _mean(scores), abs_tol=1e-6)}
    return frozenset(found & {Average.TASKS} if len(scores) > 1 and Average.TASKS in found else found)


def task_of(key: str) -> str:
    """Return the task that the item with this id is of; empty if there is only one."""
    return key.rpartition("/")[0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _pairs(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Value]]:
    """Yield the pairs whose judgement could be read, with the preference for the checkpoint in percent."""
    for row in rows:
        preference, text = row.get("preference"), str(row.get("instruction", ""))
        if preference is None or math.isnan(preference):
            continue
        reference, answer = short(str(row.get("output_1", ""))), short(str(row.get("output_2", "")))
        asked = digest_bytes(str(row.get("output_1", "")).encode(errors="surrogatepass"))
        key = pair_id(text)
        yield key, Value(PERCENT * (preference - 1), key, asked, short(text), reference, answer)
