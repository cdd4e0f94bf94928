"""What a run will cost, told before anything is spent: from what earlier runs of the suite have taken.

An estimate is no promise. What nobody can tell is named, and never counted as if it were free.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from statistics import median
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.policy import Limit
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, Suite
from halos_eval.errors import StoreError
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.plan import Plan, read_plan
from halos_eval.planning.planner import profile_of
from halos_eval.planning.progress import READERS
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, read_record

log = logging.getLogger(__name__)

ENOUGH = 20  # checkpoints: more would hardly move a median
MOST = 200  # plans that are read: many of the newest may belong to runs that have just begun, and have no record
MOST_RESUMED = 0.5  # of the work: a smaller rest does not tell how long the whole takes
JUDGE = "judge"
Item = TypeVar("Item")


class Cost(BaseModel):
    """What something will cost, by what earlier runs have taken."""

    model_config = FROZEN

    pods: int = 0
    """Stages that have to be run, each in a pod; staging and the table, on a processor, are not among them."""
    gpu_hours: float = 0
    """Hours times GPUs, of what is known."""
    judge_dollars: float = 0
    """US dollars for the judge, of what is known."""
    unknown: tuple[str, ...] = ()
    """Stages and tasks without an earlier record to go by, and a judge without a price: the sums leave them out."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            pods=self.pods + other.pods,
            gpu_hours=self.gpu_hours + other.gpu_hours,
            judge_dollars=self.judge_dollars + other.judge_dollars,
            unknown=tuple(dict.fromkeys(self.unknown + other.unknown)),
        )

    def __str__(self) -> str:
        pods = f"{self.pods} pod{'' if self.pods == 1 else 's'}"
        least = "at least " if self.unknown else ""
        known = f"{pods}, {least}{self.gpu_hours:.2f} GPU-hours and {self.judge_dollars:.2f} USD for the judge"
        return f"{known}; nothing to go by for {', '.join(self.unknown)}" if self.unknown else known


class History(NamedTuple):
    """What earlier runs of a suite have taken: medians over their records."""

    gpu_hours: dict[tuple[str, str], float]
    """By title of the job (sample, or the task) and GPU profile."""
    judge_dollars: dict[str, float | None]
    """By judge; None where it has judged, and no record of it has a price."""

    def of_plan(self, plan: Plan) -> Cost:
        """What the jobs of ``plan`` will cost that are not done."""
        return sum((self._of_job(job) for job in plan.jobs if not job.done), Cost())

    def of_suite(self, suite: Suite, checkpoint: Checkpoint, parts: Iterable[str], judge: str | None = None) -> Cost:
        """What these parts of ``suite`` will cost on ``checkpoint``, all of their jobs; no weights are read."""
        cost = Cost()
        for part in parts:
            profile = profile_of(suite, checkpoint, suite.settings_of(part).profile)
            cost += self._on_gpus("sample" if part == ALPACA_EVAL else part, profile)
            if part == ALPACA_EVAL and suite.alpaca_eval:
                cost += self._judged(judge or suite.alpaca_eval.judge)
        return cost

    def _of_job(self, job: PlannedJob) -> Cost:
        return self._judged(str(job.judge)) if job.stage == JUDGE else self._on_gpus(job.title, job.profile)

    def _on_gpus(self, title: str, profile: str) -> Cost:
        hours = self.gpu_hours.get((title, profile))
        return Cost(pods=1, unknown=(title,)) if hours is None else Cost(pods=1, gpu_hours=hours)

    def _judged(self, judge: str) -> Cost:
        dollars = self.judge_dollars.get(judge)
        if dollars is not None:
            return Cost(pods=1, judge_dollars=dollars)
        return Cost(pods=1, unknown=(f"{JUDGE} (no price)" if judge in self.judge_dollars else JUDGE,))


def read_history(suite: Suite, root: str) -> History:
    """What ``suite`` has taken in the store ``root``, by its newest plans and the records of their jobs.

    A part counts only as the suite defines it now: its cost under other settings tells nothing. A resumed run's
    seconds are of its own share of the work; they are scaled up to the whole, or left out where that share is small.
    Records are left out as well that cannot be read, or were made on another number of GPUs than the plan says. A
    judge's price covers all its answers, whichever run has paid for them. Raises StoreError.
    """
    folder = filesystem.join(layout.plans_url(root), suite.name)
    listed = [(entry.modified, name) for name, entry in filesystem.entries(folder).items() if entry.modified]
    urls = [filesystem.join(folder, name) for _, name in sorted(listed, reverse=True)[:MOST]]
    with ThreadPoolExecutor(READERS) as pool:
        return _history(_finished(suite, urls, pool))


def _finished(suite: Suite, urls: list[str], pool: Executor) -> list[tuple[PlannedJob, Record]]:
    """Jobs with their records, of the first plans in ``urls`` that have any, until there are enough of these."""
    definitions = suite.definitions
    found: list[list[tuple[PlannedJob, Record]]] = []
    for start in range(0, len(urls), READERS):
        plans = [plan for plan in pool.map(_plan, urls[start : start + READERS]) if plan]
        same = [
            [job for job in one.jobs if one.definitions.get(job.part) == definitions.get(job.part)] for one in plans
        ]
        records = pool.map(_record, [job.record for jobs in same for job in jobs])
        pairs = [[(job, record) for job in jobs if (record := next(records))] for jobs in same]
        found += [one for one in pairs if one]
        if len(found) >= ENOUGH:
            break
    return [pair for pairs in found[:ENOUGH] for pair in pairs]


def _plan(url: str) -> Plan | None:
    try:
        return read_plan(url)
    except StoreError as error:
        log.warning("not in the estimate: %s", error)
        return None


def _record(url: str) -> Record | None:
    try:
        return read_record(url)
    except StoreError as error:
        log.warning("not in the estimate: %s", error)
        return None


def _history(finished: list[tuple[PlannedJob, Record]]) -> History:
    hours: dict[tuple[str, str], list[float]] = defaultdict(list)
    dollars: dict[str, list[float]] = defaultdict(list)
    for job, record in finished:
        if job.stage == JUDGE:
            dollars[str(job.judge)] += _dollars(record)
        else:
            hours[job.title, job.profile] += _gpu_hours(job, record)
    return History(
        gpu_hours={key: median(values) for key, values in hours.items() if values},
        judge_dollars={judge: median(values) if values else None for judge, values in dollars.items()},
    )


def _gpu_hours(job: PlannedJob, record: Record) -> list[float]:
    """Hours times GPUs of an undisturbed run; none where the record does not tell."""
    resumed = record.usage.resumed or 0
    parts = str(record.provenance.config.get("tensor_parallel_size", 1))
    if resumed > MOST_RESUMED or parts != str(job.tensor_parallel_size):
        return []
    return [job.gpus * (record.usage.load_seconds + record.usage.work_seconds / (1 - resumed)) / 3600]


def _dollars(record: Record) -> list[float]:
    """The price of a whole judgement; none where there is no price list, or the endpoint did not count tokens."""
    price = record.usage.price_usd
    return [] if price is None or not record.usage.prompt_tokens else [price]


def excess(cost: Cost, limit: Limit) -> str | None:
    """By how much a run would exceed its limit, and the remedy; None if it does not. What is unknown stops nothing."""
    over = _over(cost, limit)
    return over and (
        f"by earlier runs it would cost {over}: take fewer parts of the suite, or raise limits.run in the policy file, "
        "which HALOS_EVAL_POLICY names"
    )


def within(items: Iterable[tuple[Item, Cost]], limit: Limit) -> tuple[list[Item], list[tuple[Item, str]]]:
    """The items that a night has room for, in their order, and those that it has not, each with the reason.

    What does not fit is passed over, and later smaller ones still may fit: it does not hold up the others if no night
    has room for it. Nor do they take its turn: once they are done, it is among the first of the next night.
    """
    admitted: list[Item] = []
    left_out: list[tuple[Item, str]] = []
    spent = Cost()
    for item, cost in items:
        if alone := _over(cost, limit):
            left_out.append((item, f"no night has room for it, at {alone}: raise limits.night in the policy file"))
        elif over := _over(spent + cost, limit):
            left_out.append((item, f"left for another night: with what comes first it would be {over}"))
        else:
            admitted.append(item)
            spent += cost
    return admitted, left_out


def _over(cost: Cost, limit: Limit) -> str | None:
    amounts = [
        f"{amount:.2f} {unit}, {amount - most:.2f} over the limit of {most:g}"
        for amount, most, unit in (
            (cost.gpu_hours, limit.gpu_hours, "GPU-hours"),
            (cost.judge_dollars, limit.judge_dollars, "USD for the judge"),
        )
        if most is not None and amount > most
    ]
    return " and ".join(amounts) or None
