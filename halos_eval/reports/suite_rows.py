"""Rows of a suite: which records are the current ones, and why others are not.

The suite's definition and the checkpoints are those of the latest plans. A result that is not current stays visible,
with the reason, but has no part in the average.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import halos_eval
from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.digests import digest_files, digest_json
from halos_eval.planning.changes import changes, newest_record
from halos_eval.planning.current import Standing, files_of, judged_again, standing
from halos_eval.planning.definition import UNKNOWN, read_definition
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.plan import Plan
from halos_eval.reports.results import Missing, Row, row_of_plan
from halos_eval.stages.identity import Identity
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import StageName, readable
from halos_eval.storage.series import read_series

OWN = frozenset({"model", "outputs", "chat_template", "stop"})
"""Keys of an identity that differ between checkpoints, so they are no change of the suite."""


class SuiteRows:
    """Rows of one suite in the store ``root``."""

    def __init__(self, root: str, suite: str) -> None:
        self.root, self.suite = root, suite
        self.definition = read_definition(root, suite)
        self.series = read_series(root)

    @property
    def made_with(self) -> str:
        """Digest of everything that all rows depend on: the definition, the series, this code, and the store's URL."""
        definition = self.definition.model_dump(mode="json") if self.definition else None
        return digest_json([definition, self.series.model_dump(mode="json"), _code(), self.root])

    def read(self, url: str) -> Row:
        """Return the row of the plan at ``url``. If the plan is damaged, the row says so. Raise StoreError."""
        plan, damage = readable(url, Plan)
        if plan:
            return self.row(plan)
        name = url.rsplit("/", 1)[-1].removesuffix(".json").replace("__", "/")
        return Row(name, missing=(Missing("plan", damage or f"{url} was removed while it was read"),))

    def row(self, plan: Plan) -> Row:
        """Return the row of one checkpoint. Raise StoreError."""
        if self.definition is None or not self.series.series:
            return row_of_plan(plan)
        parts = self.definition.parts
        current = [job for job in plan.jobs if job.part in parts and self._as_defined(plan, job.part)]
        found = standing(_identities(current), files_of(self.root, plan.checkpoint.name), self.series)
        jobs, outdated = self._current(plan, current, found)
        left_out = []
        for part, stages in self._unplanned(plan, current).items():
            older = [found_one for stage in stages if (found_one := self._older(plan, part, stage))]
            jobs += [job for job, _ in older]
            outdated |= {job.title: why for job, why in older}
            there = {job.stage for job in jobs if job.part == part}
            left_out += [part] if not there else ["judge"] if not there.issuperset(stages) else []
        unavailable = {part: why for part, why in plan.unavailable.items() if part in parts}
        update = {
            "jobs": _in_order(jobs, parts),
            "left_out": tuple(left_out),
            "unavailable": unavailable,
            "warn_above": self.definition.warn_above,
        }
        row = row_of_plan(plan.model_copy(update=update), outdated)
        return replace(row, series=found.series.number if found.done else None)

    def _as_defined(self, plan: Plan, part: str) -> bool:
        """Return whether the jobs of a part were planned with the suite's definition of today."""
        now = self.definition.parts[part].digest if self.definition else UNKNOWN
        return now in {UNKNOWN, plan.definitions.get(part)}

    def _current(
        self, plan: Plan, jobs: Iterable[PlannedJob], found: Standing
    ) -> tuple[list[PlannedJob], dict[str, str]]:
        """Return the jobs with the records to show, and the reasons of those that are not current."""
        name, shown = plan.checkpoint.name, []
        outdated: dict[str, str] = {}
        tails = {one.title: one.tail for one in found.stages}
        for job in jobs:
            url = filesystem.join(layout.runs_url(self.root, name), tails[job.title]) if job.identity else job.record
            if job.identity and job.title not in found.done | found.failed:
                newest = newest_record(self.root, name, job.stage, job.task)
                if newest:
                    url, record = newest
                    outdated[job.title] = _reason(changes(record, job.identity, tools=False))
            shown.append(job.model_copy(update={"record": url}))
        if judged_again(self.root, name, found):
            outdated["judge"] = "not current: the outputs were sampled again"
        return shown, outdated

    def _unplanned(self, plan: Plan, jobs: Iterable[PlannedJob]) -> dict[str, list[StageName]]:
        """Return the stages, by part, for which the plan has no job as the suite is defined now."""
        planned = {(job.part, job.stage) for job in jobs}
        found: dict[str, list[StageName]] = {}
        for part in (self.definition.parts if self.definition else {}).keys() - plan.unavailable.keys():
            stages: list[StageName] = ["sample", "judge"] if part == ALPACA_EVAL else ["harness"]
            if missing := [stage for stage in stages if (part, stage) not in planned]:
                found[part] = missing
        return dict(sorted(found.items()))

    def _older(self, plan: Plan, part: str, stage: StageName) -> tuple[PlannedJob, str] | None:
        """Return the newest result of a stage that was planned for another definition or for other weights."""
        task = part if stage == "harness" else None
        found = newest_record(self.root, plan.checkpoint.name, stage, task)
        if found is None or self.definition is None:
            return None
        url, record = found
        definition = self.definition.parts[part]
        now = next((one for one in definition.identities if one.stage == stage), None)
        words = changes(record, now, tools=False, ignore=OWN) if now else ["definition"]
        job = PlannedJob(
            stage=stage, task=task, image="worker", argv=(), profile="", fingerprint=record.fingerprint,
            record=url, metric=definition.metric, done=True, why="",
        )  # fmt: skip
        return job, _reason(["weights"] if record.checkpoint.digest != plan.checkpoint.digest else words)


@cache
def _code() -> str:
    folder = Path(halos_eval.__file__).parent
    return digest_files(folder, [str(path.relative_to(folder)) for path in folder.rglob("*.py")])


def _identities(jobs: Iterable[PlannedJob]) -> dict[str, list[Identity]]:
    found: dict[str, list[Identity]] = {}
    for job in jobs:
        if job.identity:
            found.setdefault(job.part, []).append(job.identity)
    return found


def _in_order(jobs: Iterable[PlannedJob], parts: Iterable[str]) -> tuple[PlannedJob, ...]:
    order = {part: number for number, part in enumerate(parts)}
    return tuple(sorted(jobs, key=lambda job: order[job.part]))


def _reason(words: list[str]) -> str:
    return f"not current: {', '.join(words)}"
