"""What has been evaluated of many checkpoints: from plans, and from which records are there, without reading those.

Weights are not digested for this. ``halos-eval plan`` does that for one checkpoint, and tells exactly what would run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pydantic import BaseModel

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import load_suite, suite_names
from halos_eval.errors import BadInput, StoreError
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.plan import Plan, read_plan
from halos_eval.storage import filesystem, layout

READERS = 16  # threads: they wait for the store


class Progress(BaseModel):
    """How far a suite is on a checkpoint, as it was planned last."""

    model_config = FROZEN

    done: tuple[str, ...]
    """What has its record: sample, judge, names of tasks."""
    failed: tuple[str, ...]
    """What has failed and left a note, and parts whose data cannot be had."""
    missing: tuple[str, ...]
    """What has not been run, or was defined otherwise when it was."""
    outdated: bool
    """Whether the checkpoint was registered anew since it was planned: what is done was done with older weights."""

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return not (self.failed or self.missing or self.outdated)

    def __str__(self) -> str:
        total = len(self.done) + len(self.failed) + len(self.missing)
        parts = ["complete" if self.complete else f"{len(self.done)} of {total}"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join([*parts, "of older weights"] if self.outdated else parts)


class Overview(NamedTuple):
    """What has been evaluated."""

    suites: tuple[str, ...]
    """The suites in question."""
    progress: dict[str, dict[str, Progress]]
    """By checkpoint and suite; what was never planned is not there."""
    unreadable: dict[str, str]
    """Plans and suites that cannot be read, with the reason."""


def overview(root: str, checkpoints: Sequence[Checkpoint], suites: Sequence[str] = ()) -> Overview:
    """What has been evaluated of ``checkpoints`` in the store ``root``, for ``suites`` or for all that have a plan.

    Raises BadInput for a suite that nobody knows, StoreError.
    """
    planned = sorted(name for name, entry in filesystem.entries(layout.plans_url(root)).items() if entry.is_folder)
    if unknown := [suite for suite in suites if suite not in {*planned, *suite_names()}]:
        raise BadInput(f"there is no suite {', '.join(unknown)}: there are {', '.join(suite_names())}")
    reader = _Reader(root, suites or planned)
    with ThreadPoolExecutor(READERS) as pool:
        progress = dict(zip((one.name for one in checkpoints), pool.map(reader.read, checkpoints), strict=True))
    return Overview(tuple(suites or planned), progress, reader.unreadable)


class _Reader:
    def __init__(self, root: str, suites: Iterable[str]) -> None:
        self.root = root
        self.unreadable: dict[str, str] = {}
        self.plans = {suite: filesystem.entries(filesystem.join(layout.plans_url(root), suite)) for suite in suites}
        self.definitions = {suite: self._definitions(suite) for suite in suites}

    def _definitions(self, suite: str) -> dict[str, str] | None:
        """The suite's parts as they are now; None where the suite is there no more, or cannot be read."""
        if suite not in suite_names():
            return None
        try:
            return load_suite(suite).definitions
        except BadInput as error:
            self.unreadable[suite] = str(error)
            return None

    def read(self, checkpoint: Checkpoint) -> dict[str, Progress]:
        """By suite. The checkpoint's folder is listed once, whatever the number of suites."""
        folder = layout.folder_name(checkpoint.name)
        planned = {suite: one[f"{folder}.json"] for suite, one in self.plans.items() if f"{folder}.json" in one}
        if not planned:
            return {}
        there = {_tail(url) for url in filesystem.find(filesystem.join(self.root, "runs", folder), ".json")}
        found = {}
        for suite, entry in planned.items():
            try:
                plan = read_plan(layout.plan_url(self.root, suite, checkpoint.name))
            except StoreError as error:
                self.unreadable[f"{suite} on {checkpoint.name}"] = str(error)
                continue
            if plan:
                outdated = bool(checkpoint.registered and entry.modified and checkpoint.registered > entry.modified)
                found[suite] = _progress(plan, self.definitions[suite], there, outdated)
        return found


def _progress(plan: Plan, definitions: dict[str, str] | None, there: set[str], outdated: bool) -> Progress:
    wanted = plan.definitions if definitions is None else definitions
    changed = [part for part, digest in wanted.items() if plan.definitions.get(part) != digest]
    left_out = [part for part in plan.left_out if part in wanted and part not in changed]
    states: dict[str, list[str]] = {"done": [], "failed": [], "missing": left_out + changed}
    states["failed"] += [part for part in plan.unavailable if part in wanted and part not in changed]
    for job in plan.jobs:
        if job.part in wanted and job.part not in changed:
            states[_state(job, there)].append(job.title)
    return Progress(**{state: tuple(titles) for state, titles in states.items()}, outdated=outdated)


def _state(job: PlannedJob, there: set[str]) -> str:
    if _tail(job.record) in there:
        return "done"
    return "failed" if _tail(layout.failure_beside(job.record)) in there else "missing"


def _tail(url: str) -> str:
    """STAGE/FINGERPRINT/FILE: the same wherever the store is mounted."""
    return "/".join(url.rsplit("/", 3)[1:])
