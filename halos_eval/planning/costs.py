"""Cost estimates before a run, from the records of earlier runs of the suite.

Stages without history are listed as unknown and excluded from the total. They never count as free.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from statistics import median
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.policy import Limit
from halos_eval.config.served_judge import JudgeChoice, ServedJudge
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, AlpacaEvalSettings, Suite
from halos_eval.data import prompts
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.planning.chat import OF_CHECKPOINTS
from halos_eval.planning.expected import NOTHING, Expected, packing_of
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.packing import Packing
from halos_eval.planning.plan import Plan
from halos_eval.planning.planner import profile_of
from halos_eval.planning.progress import READERS
from halos_eval.stages.judge.options import SWAP
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import Model, Record, readable, readable_record

log = logging.getLogger(__name__)

ENOUGH = 20  # checkpoints with records: more would hardly change a median
MOST = 200  # plans to read: the newest may belong to runs that have just started and have no record
MOST_RESUMED = 0.5  # share of the work: from a smaller rest, the time of the whole cannot be estimated
SAMPLE = "sample"
JUDGE = "judge"
PACK = "pack"
"""Command of a process that loaded the model for several stages."""
ALONE = Packing()
"""Each stage in a pod of its own."""
Item = TypeVar("Item")


class Cost(BaseModel):
    """An estimated cost."""

    model_config = FROZEN

    pods: int = 0
    """Stages to run, each in a pod; ``fetch`` and ``summarize`` need no GPU and do not count."""
    gpu_hours: float = 0
    """Hours times GPUs of the stages with history."""
    judge_dollars: float = 0
    """US dollars for the judge, if it has a price and history."""
    unknown: tuple[str, ...] = ()
    """Stages and tasks without history, and judges without a price. The sums exclude them."""

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
        return f"{known}; no history for: {', '.join(self.unknown)}" if self.unknown else known


class History(NamedTuple):
    """The costs of earlier runs of a suite, as medians over their records."""

    gpu_hours: dict[tuple[str, str], float]
    """GPU-hours by GPU profile and title of the job: sample, the task, or the judge that is served."""
    judge_dollars: dict[str, float | None]
    """US dollars by judge, for each pair in one order; None if it has records, but none with a price."""
    expected: Expected = NOTHING
    """Seconds of work and of loading, from which stages are packed into pods."""
    gpus: Mapping[str, int] = {}
    """GPUs by profile."""

    def of_plan(self, plan: Plan, packing: Packing = ALONE) -> Cost:
        """Return the cost of the jobs of ``plan`` that are not done, if they are packed so."""
        jobs = [job for job in plan.jobs if not job.done]
        profiles = {job.title: job.profile for job in jobs}
        return sum((self._of_job(job) for job in jobs), Cost()) + self._saved(packing, profiles)

    def _saved(self, packing: Packing, profiles: Mapping[str, str]) -> Cost:
        """Return the pods and loads that sharing saves, as a negative cost."""
        saved = Cost()
        for titles in packing.packs:
            profile = profiles[titles[0]]
            known = [title for title in titles if (title, profile) in self.gpu_hours]
            hours = self.gpus.get(profile, 0) * self.expected.load.get(profile, 0) / 3600
            saved += Cost(pods=1 - len(titles), gpu_hours=-hours * max(0, len(known) - 1))
        return saved

    def shares(self, jobs: Sequence[PlannedJob], limit: float) -> list[float]:
        """Return the part of a ``limit`` in US dollars that each of several judges may cost.

        The parts are in proportion to the estimates, or equal if there is no estimate for one of the judges.
        """
        costs = [self._of_job(job) for job in jobs]
        total = sum(cost.judge_dollars for cost in costs)
        if total == 0 or any(cost.unknown for cost in costs):
            return [limit / len(jobs) for _ in jobs]
        return [limit * cost.judge_dollars / total for cost in costs]

    def of_suite(
        self,
        suite: Suite,
        checkpoint: Checkpoint,
        parts: Iterable[str],
        judge: str | None = None,
        done: Collection[str] = (),
    ) -> Cost:
        """Return the cost of the jobs of these parts of ``suite`` on ``checkpoint``. Read no weights.

        ``judge`` replaces the suite's judges. ``done`` has the titles of finished stages, which cost nothing.
        """
        cost = Cost()
        profiles: dict[str, str] = {}
        for part in parts:
            profile = profile_of(suite, checkpoint, suite.settings_of(part).profile)
            title = "sample" if part == ALPACA_EVAL else part
            if title not in done:
                profiles[title] = profile
            cost += Cost() if title in done else self._on_gpus(title, profile)
            if getattr(suite.settings_of(part), "confirm_unsafe_code", False) and title not in done:
                cost += Cost(pods=1)  # its second half
            if part == ALPACA_EVAL and suite.alpaca_eval:
                orders = 2 if suite.alpaca_eval.swap else 1
                judges: dict[str, JudgeChoice] = {JUDGE: judge} if judge else dict(suite.alpaca_eval.judge_titles)
                for title, one in judges.items():
                    served = (one.profile or suite.profile) if isinstance(one, ServedJudge) else None
                    cost += Cost() if title in done else self._judged(str(one), served, orders)
        return cost + self._saved(packing_of(suite, checkpoint, profiles, self.expected), profiles)

    def _of_job(self, job: PlannedJob) -> Cost:
        if job.score:  # besides the pod that scores the answers, one that generates them
            return Cost(pods=1) + (self._on_gpus(job.title, job.profile) if _generates(job) else Cost())
        if job.stage != JUDGE:
            return self._on_gpus(job.title, job.profile)
        orders = _orders(job.identity.settings if job.identity else {})
        return self._judged(str(job.judge), job.profile if job.server else None, orders)

    def _on_gpus(self, title: str, profile: str) -> Cost:
        hours = self.gpu_hours.get((title, profile))
        return Cost(pods=1, unknown=(title,)) if hours is None else Cost(pods=1, gpu_hours=hours)

    def _judged(self, judge: str, profile: str | None, orders: int) -> Cost:
        """Return the cost of a judge by name, or on the GPUs of ``profile``, that is asked in so many orders."""
        if profile:
            hours = self.gpu_hours.get((judge, profile))
            return Cost(pods=1, unknown=(JUDGE,)) if hours is None else Cost(pods=1, gpu_hours=hours)
        dollars = self.judge_dollars.get(judge)
        if dollars is not None:
            return Cost(pods=1, judge_dollars=dollars * orders)
        return Cost(pods=1, unknown=(f"{JUDGE} (no price)" if judge in self.judge_dollars else JUDGE,))


def _generates(job: PlannedJob) -> bool:
    """Return whether a task that executes a model's code has no answers yet."""
    return job.generate is not None and job.generate.profile == job.profile


def read_history(suite: Suite, root: str, now: Plan | None = None) -> History:
    """Return the costs of ``suite`` in the store ``root``, from its newest plans and their records. Raise StoreError.

    A part counts only if its settings are those of the suite now, and its prompts those of the plan ``now`` (default:
    of the suite's file or of its manifest; AlpacaEval's own are not compared without either). A resumed run has the
    seconds of its share of the work: they are scaled up to the whole, or excluded if the share is small. Records are
    excluded if they are unreadable, or made on another number of GPUs than planned. A judge's price includes answers
    that earlier runs paid for.
    """
    folder = filesystem.join(layout.plans_url(root), suite.name)
    listed = [(entry.modified, name) for name, entry in filesystem.entries(folder).items() if entry.modified]
    urls = [filesystem.join(folder, name) for _, name in sorted(listed, reverse=True)[:MOST]]
    digest = _prompts_of(now) if now else _prompts(suite, root)
    with ThreadPoolExecutor(READERS) as pool:
        return _history(_finished(suite, digest, urls, pool))


def _prompts_of(plan: Plan) -> str | None:
    """Return the digest of the prompts of a plan; None if it samples nothing."""
    return next((job.identity.inputs["prompts"] for job in plan.jobs if job.stage == SAMPLE and job.identity), None)


def _prompts(suite: Suite, root: str) -> str | None:
    """Return the digest of the suite's prompts; None if it cannot be known without the hub, or without a valid file."""
    if suite.alpaca_eval is None:
        return None
    name = suite.alpaca_eval.prompts
    url = layout.manifest_url(root, suite.name)
    manifest = _without_damage(readable(url, Manifest)) if name == ALPACA_EVAL else None
    if name == ALPACA_EVAL and manifest is None:
        return None
    try:
        return prompts.digest(name, "prompts", manifest)
    except (BadInput, DataUnavailable) as error:  # the plan will say so
        log.warning("the estimate is not for these prompts: %s", error)
        return None


def _finished(suite: Suite, digest: str | None, urls: list[str], pool: Executor) -> list[tuple[PlannedJob, Record]]:
    """Return jobs with their records, of the first ``ENOUGH`` plans in ``urls`` that have records."""
    found: list[list[tuple[PlannedJob, Record]]] = []
    for start in range(0, len(urls), READERS):
        plans = [plan for plan in pool.map(_plan, urls[start : start + READERS]) if plan]
        same = [_same(one, suite, digest) for one in plans]
        records = pool.map(_record, [job.record for jobs in same for job in jobs])
        pairs = [[(job, record) for job in jobs if (record := next(records))] for jobs in same]
        found += [one for one in pairs if one]
        if len(found) >= ENOUGH:
            break
    return [pair for pairs in found[:ENOUGH] for pair in pairs]


def _same(plan: Plan, suite: Suite, digest: str | None) -> list[PlannedJob]:
    """Return the jobs of ``plan`` that are as now. A judge's cost depends on the number and length of the outputs.

    A trial may be one of an earlier plan, with other outputs.
    """
    jobs = [job for job in (*plan.jobs, *plan.trials) if _as_now(job, suite, digest)]
    sampled = {job.fingerprint for job in jobs if job.stage == SAMPLE}
    return [
        job for job in jobs if job.identity and (job.stage != JUDGE or job.identity.inputs.get("outputs") in sampled)
    ]


def _as_now(job: PlannedJob, suite: Suite, digest: str | None) -> bool:
    """Return whether a job had the settings and prompts that the suite has now; a checkpoint may add its own settings.

    ``digest`` is that of the prompts now; None if it is not known.
    """
    if job.part not in suite.parts or job.identity is None:
        return False
    if job.stage == SAMPLE and digest and job.identity.inputs.get("prompts") != digest:
        return False
    settings = suite.settings_of(job.part)
    if job.stage == JUDGE:
        return True
    own = settings.sampling if isinstance(settings, AlpacaEvalSettings) else settings.harness()
    found = job.identity.settings
    return {**own.counted, **dict.fromkeys(OF_CHECKPOINTS)} == {**found, **dict.fromkeys(OF_CHECKPOINTS)}


def _plan(url: str) -> Plan | None:
    return _without_damage(readable(url, Plan))


def _record(url: str) -> Record | None:
    return _without_damage(readable_record(url))


def _without_damage(found: tuple[Model | None, str]) -> Model | None:
    document, damage = found
    if damage:
        log.warning("excluded from the estimate: %s", damage)
    return document


def _history(finished: list[tuple[PlannedJob, Record]]) -> History:
    hours: dict[tuple[str, str], list[float]] = defaultdict(list)
    dollars: dict[str, list[float]] = defaultdict(list)
    work: dict[tuple[str, str], list[float]] = defaultdict(list)
    loads = _loads(finished)
    for job, record in finished:
        if job.server:
            hours[str(job.judge), job.profile] += _gpu_hours(job, record, record.usage.load_seconds)
        elif job.stage == JUDGE:
            dollars[str(job.judge)] += _dollars(record)
        else:
            load = loads[_load_key(job, record)]
            hours[job.title, job.profile] += _gpu_hours(job, record, load)
            work[job.title, job.profile] += _work(record)
    profiles = {job.profile: job.gpus for job, _ in finished}
    loaded = {name: [one for key, one in loads.items() if key[0] == name] for name in profiles}
    return History(
        expected=Expected(
            {key: median(values) for key, values in work.items() if values},
            {name: median(values) for name, values in loaded.items() if values},
        ),
        gpus=profiles,
        gpu_hours={key: median(values) for key, values in hours.items() if values},
        judge_dollars={judge: median(values) if values else None for judge, values in dollars.items()},
    )


def _loads(finished: Iterable[tuple[PlannedJob, Record]]) -> dict[tuple[str, ...], float]:
    """Return the seconds in which each process loaded the model. Of the stages of a pack, only one waited for it."""
    found: dict[tuple[str, ...], float] = {}
    for job, record in finished:
        if job.stage != JUDGE:
            key = _load_key(job, record)
            found[key] = max(found.get(key, 0), record.usage.load_seconds)
    return found


def _load_key(job: PlannedJob, record: Record) -> tuple[str, ...]:
    """Return what the records of one process have in common, beginning with the profile."""
    command = record.provenance.command
    return (job.profile, *command) if PACK in command[1:2] else (job.profile, job.record)


def _work(record: Record) -> list[float]:
    """Return the seconds of an uninterrupted run after loading; an empty list if most of it was done before."""
    resumed = record.usage.resumed or 0
    return [] if resumed > MOST_RESUMED else [record.usage.work_seconds / (1 - resumed)]


def _gpu_hours(job: PlannedJob, record: Record, load: float) -> list[float]:
    """Return the GPU-hours of an uninterrupted run in a pod of its own; an empty list if no estimate is possible."""
    split = str(record.provenance.config.get("tensor_parallel_size", job.tensor_parallel_size if job.server else 1))
    if split != str(job.tensor_parallel_size):
        return []
    return [job.gpus * (load + work) / 3600 for work in _work(record)]


def _dollars(record: Record) -> list[float]:
    """Return the price of all pairs in one order; an empty list without a price list or without counted tokens."""
    price = record.usage.price_usd
    orders = _orders(record.identity.get("settings", {}))
    return [] if price is None or not record.usage.prompt_tokens else [price / orders]


def _orders(settings: Mapping[str, object]) -> int:
    """Return in how many orders a judge with these settings is asked about each pair."""
    return 2 if settings.get(SWAP) else 1


def excess(cost: Cost, limit: Limit) -> str | None:
    """Return by how much a run exceeds its limit, and the remedy; None if it does not. Unknown costs do not count."""
    over = _over(cost, limit)
    return over and (
        f"estimated cost: {over}. Select fewer parts of the suite, or raise limits.run in the policy file "
        "(HALOS_EVAL_POLICY)"
    )


def within(items: Iterable[tuple[Item, Cost]], limit: Limit) -> tuple[list[Item], list[tuple[Item, str]]]:
    """Return the items that fit in a night's limit, in their order, and the others with the reasons.

    An item that does not fit is skipped, and smaller ones after it may still fit. So an item that fits in no night does
    not block the others. A skipped item is among the first of the next night.
    """
    admitted: list[Item] = []
    left_out: list[tuple[Item, str]] = []
    spent = Cost()
    for item, cost in items:
        if alone := _over(cost, limit):
            left_out.append((item, f"too large for any night: {alone}. Raise limits.night in the policy file"))
        elif over := _over(spent + cost, limit):
            left_out.append((item, f"left for the next night: with the runs before it, {over}"))
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
