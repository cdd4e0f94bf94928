"""The progress of suites on many checkpoints: from plans and the names of records, without reading records.

Digests of weights are not computed. ``halos-eval plan`` computes them for one checkpoint and shows exactly what would
run.
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
    """The progress of a suite on a checkpoint, by its newest plan."""

    model_config = FROZEN

    done: tuple[str, ...]
    """Jobs with a record: sample, judge, names of tasks."""
    failed: tuple[str, ...]
    """Jobs with a failure note, and parts whose data is unavailable."""
    missing: tuple[str, ...]
    """Jobs that have not run, and parts whose settings changed since the plan."""
    outdated: bool
    """Whether the checkpoint was registered again after the plan, so that the records are for older weights."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.failed or self.missing or self.outdated)

    def __str__(self) -> str:
        total = len(self.done) + len(self.failed) + len(self.missing)
        parts = ["complete" if self.complete else f"{len(self.done)} of {total}"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join([*parts, "older weights"] if self.outdated else parts)


class Overview(NamedTuple):
    """The progress of several suites on several checkpoints."""

    suites: tuple[str, ...]
    """Names of the suites."""
    progress: dict[str, dict[str, Progress]]
    """Progress by checkpoint and suite; only suites with a plan are listed."""
    unreadable: dict[str, str]
    """Unreadable plans and suites, with the reasons."""


def overview(root: str, checkpoints: Sequence[Checkpoint], suites: Sequence[str] = ()) -> Overview:
    """Return the progress of ``checkpoints`` in the store ``root``, for ``suites`` or for all suites with a plan.

    Raise BadInput for an unknown suite, and StoreError.
    """
    planned = sorted(name for name, entry in filesystem.entries(layout.plans_url(root)).items() if entry.is_folder)
    if unknown := [suite for suite in suites if suite not in {*planned, *suite_names()}]:
        raise BadInput(f"unknown suite {', '.join(map(repr, unknown))}; available: {', '.join(suite_names())}")
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
        """Return the digests of the suite's parts as they are now; None if the suite is gone or unreadable."""
        if suite not in suite_names():
            return None
        try:
            return load_suite(suite).definitions
        except BadInput as error:
            self.unreadable[suite] = str(error)
            return None

    def read(self, checkpoint: Checkpoint) -> dict[str, Progress]:
        """Return the checkpoint's progress by suite. List its folder only once, for all suites."""
        folder = layout.folder_name(checkpoint.name)
        planned = {suite: one[f"{folder}.json"] for suite, one in self.plans.items() if f"{folder}.json" in one}
        if not planned:
            return {}
        files = {_tail(url) for url in filesystem.find(filesystem.join(self.root, "runs", folder), ".json")}
        found = {}
        for suite, entry in planned.items():
            try:
                plan = read_plan(layout.plan_url(self.root, suite, checkpoint.name))
            except StoreError as error:
                self.unreadable[f"{suite} on {checkpoint.name}"] = str(error)
                continue
            if plan:
                outdated = bool(checkpoint.registered and entry.modified and checkpoint.registered > entry.modified)
                found[suite] = _progress(plan, self.definitions[suite], files, outdated)
        return found


def _progress(plan: Plan, definitions: dict[str, str] | None, files: set[str], outdated: bool) -> Progress:
    wanted = plan.definitions if definitions is None else definitions
    changed = [part for part, digest in wanted.items() if plan.definitions.get(part) != digest]
    left_out = [part for part in plan.left_out if part in wanted and part not in changed]
    states: dict[str, list[str]] = {"done": [], "failed": [], "missing": left_out + changed}
    states["failed"] += [part for part in plan.unavailable if part in wanted and part not in changed]
    for job in plan.jobs:
        if job.part in wanted and job.part not in changed:
            states[_state(job, files)].append(job.title)
    return Progress(**{state: tuple(titles) for state, titles in states.items()}, outdated=outdated)


def _state(job: PlannedJob, files: set[str]) -> str:
    if _tail(job.record) in files:
        return "done"
    return "failed" if _tail(layout.failure_beside(job.record)) in files else "missing"


def _tail(url: str) -> str:
    """Return STAGE/FINGERPRINT/FILE, which does not depend on where the store is mounted."""
    return "/".join(url.rsplit("/", 3)[1:])
