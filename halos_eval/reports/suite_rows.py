"""Rows of a suite: which records are the current ones, and why others are not.

The suite's definition and the checkpoints are those of the latest plans. A result that is not current stays visible,
with the reason, but has no part in the average.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import halos_eval
from halos_eval.config.suite import ALPACA_EVAL, title_of
from halos_eval.digests import digest_files, digest_json
from halos_eval.planning.changes import changes, newest_record, other_tools, same_judge
from halos_eval.planning.chat import OF_CHECKPOINTS
from halos_eval.planning.current import Standing, files_of, judged_again, standing
from halos_eval.planning.definition import PartDefinition, read_definition
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.plan import Plan, as_defined
from halos_eval.reports.comparison import GateOutcome
from halos_eval.reports.results import Missing, Row, row_of_plan
from halos_eval.stages.identity import Identity
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, StageName, readable, readable_record
from halos_eval.storage.series import read_series

OWN = frozenset({"model", "outputs", "chat_template", *OF_CHECKPOINTS})
"""Keys of an identity that differ between checkpoints, so they are no change of the suite."""


class SuiteRows:
    """Rows of one suite in the store ``root``."""

    def __init__(self, root: str, suite: str) -> None:
        self.root, self.suite = root, suite
        with ThreadPoolExecutor(2) as pool:
            series = pool.submit(read_series, root)
            self.definition = read_definition(root, suite)
            self.series = series.result()

    @property
    def made_with(self) -> str:
        """Digest of everything that all rows depend on: the definition, the series, this code, and the store's URL."""
        definition = self.definition.model_dump(mode="json") if self.definition else None
        return digest_json([definition, self.series.model_dump(mode="json"), _code(), self.root])

    def read(self, name: str) -> Row | None:
        """Return the row of a checkpoint, whose name is as in file names; None if it has no plan.

        If the plan is damaged, the row says so. Raise StoreError.
        """
        plan, damage = readable(filesystem.join(layout.plans_url(self.root), self.suite, f"{name}.json"), Plan)
        if damage:
            return Row(name.replace("__", "/"), missing=(Missing("plan", damage),), suite=self.suite)
        return self.row(plan) if plan else None

    def row(self, plan: Plan) -> Row:
        """Return the row of one checkpoint. Raise StoreError."""
        current, outdated, series = self._shown(plan)
        return replace(row_of_plan(current, outdated), series=series, gate=self._gate(plan.checkpoint.name))

    def _gate(self, checkpoint: str) -> str:
        """Return the outcome of a checkpoint's gate in words; empty without one. The folder is listed only once."""
        if f"{layout.folder_name(checkpoint)}.json" not in self._gates:
            return ""
        outcome, damage = readable(layout.gate_url(self.root, self.suite, checkpoint), GateOutcome)
        return str(outcome) if outcome else damage

    @cached_property
    def _gates(self) -> frozenset[str]:
        return frozenset(filesystem.entries(layout.gates_url(self.root, self.suite)))

    def shown(self, plan: Plan) -> tuple[Plan, dict[str, str]]:
        """Return the plan with the jobs whose records are shown, and the reasons of those that are not current."""
        current, outdated, _ = self._shown(plan)
        return current, outdated

    def _shown(self, plan: Plan) -> tuple[Plan, dict[str, str], int | None]:
        if self.definition is None or not self.series.series:
            return plan, {}, None
        parts = self.definition.parts
        current = [job for part, one in parts.items() for job in as_defined(plan, part, one)]
        found = standing(_identities(current), files_of(self.root, plan.checkpoint.name), self.series)
        jobs, outdated = self._current(plan, current, found)
        left_out = []
        for part, stages in self._unplanned(plan, current).items():
            older = [self._older(plan, part, stage) for stage in stages]
            jobs += [job for job, _ in older if job]
            outdated |= {stage.title: why for stage, (_, why) in zip(stages, older, strict=True) if why}
            there = {job.title for job in jobs if job.part == part}
            absent = [stage.title for stage in stages if stage.title not in there | outdated.keys()]
            left_out += absent if there or len(absent) < len(stages) else [part]
        unavailable = {part: why for part, why in plan.unavailable.items() if part in parts}
        update = {
            "jobs": _in_order(jobs, parts),
            "left_out": tuple(left_out),
            "unavailable": unavailable,
            "warn_above": self.definition.warn_above,
        }
        return plan.model_copy(update=update), outdated, found.series.number if found.done else None

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
                newest = newest_record(self.root, name, job.stage, job.task, _judge(job.identity))
                if newest:
                    url, record = newest
                    words = changes(record, job.identity, tools=False) or other_tools(record, found.series.tools)
                    outdated[job.title] = _reason(words or ["the outputs are of another series"])
            shown.append(job.model_copy(update={"record": url}))
        outdated |= dict.fromkeys(judged_again(self.root, name, found), "not current: the outputs were sampled again")
        return shown, outdated

    def _unplanned(self, plan: Plan, jobs: Iterable[PlannedJob]) -> dict[str, list[_Expected]]:
        """Return the stages, by part, for which the plan has no job as the suite is defined now."""
        planned = {(job.part, job.title) for job in jobs}
        found: dict[str, list[_Expected]] = {}
        parts = self.definition.parts if self.definition else {}
        for part in sorted(parts.keys() - plan.unavailable.keys()):
            expected = [one for one in _expected(part, parts[part]) if (part, one.title) not in planned]
            if expected:
                found[part] = expected
        return found

    def _older(self, plan: Plan, part: str, stage: _Expected) -> tuple[PlannedJob | None, str]:
        """Return the newest result of a stage that was planned for another definition or weights, and what changed.

        Without one there is no job. The result of another judge is none, because its scores are not comparable.
        """
        name, now = plan.checkpoint.name, stage.identity
        found = newest_record(self.root, name, stage.stage, stage.task, _judge(now))
        if found is None:
            other = newest_record(self.root, name, stage.stage, stage.task) if stage.title == "judge" else None
            judges = self.definition.parts[part].judges if self.definition else ()
            replaced = other and not any(same_judge(other[1], one) for one in judges)
            return None, _reason(["judge"]) if replaced else ""
        url, record = found
        words = changes(record, now, tools=False, ignore=OWN) if now else ["definition"]
        job = PlannedJob(
            stage=stage.stage, task=stage.task, label=now and now.label, image="worker", argv=(), profile="",
            fingerprint=record.fingerprint, record=url,
            metric=self.definition.parts[part].metric if self.definition else None, done=True, why="",
        )  # fmt: skip
        if record.checkpoint.digest != plan.checkpoint.digest:
            words = ["weights"]
        return job, _reason(words or [self._elsewhere(plan, part, record)])

    def _elsewhere(self, plan: Plan, part: str, record: Record) -> str:
        """Return what made a result outdated although its stage is defined as before."""
        outputs = record.identity.get("inputs", {}).get("outputs") if record.stage == "judge" else None
        if outputs and self.definition:
            tail = layout.record_tail("sample", None, str(outputs))
            sampled, _ = readable_record(filesystem.join(layout.runs_url(self.root, plan.checkpoint.name), tail))
            now = next((one for one in self.definition.parts[part].identities if one.stage == "sample"), None)
            if sampled and now and changes(sampled, now, tools=False, ignore=OWN):
                return "the outputs were sampled with other settings"
        return "planned before the suite or the checkpoint's metadata changed"


class _Expected(NamedTuple):
    """A stage that a suite has; without an identity if its data is unavailable."""

    stage: StageName
    task: str | None
    identity: Identity | None

    @property
    def title(self) -> str:
        return title_of(self.stage, self.task, self.identity.label if self.identity else None)


def _expected(part: str, definition: PartDefinition) -> list[_Expected]:
    if definition.identities:
        return [_Expected(one.stage, one.task, one) for one in definition.identities]
    if part == ALPACA_EVAL:
        return [_Expected("sample", None, None), _Expected("judge", None, None)]
    return [_Expected("harness", part, None)]


def _judge(identity: Identity | None) -> Identity | None:
    """Return the identity if it is a judge's, whose results are the only ones to show."""
    return identity if identity and identity.stage == "judge" else None


@cache
def _code() -> str:
    folder = Path(halos_eval.__file__).parent
    files = [path for path in folder.rglob("*") if path.suffix in {".py", ".jinja", ".css", ".js"}]
    return digest_files(folder, [str(path.relative_to(folder)) for path in files])


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
