"""The jobs of pods that several stages share. Each stage keeps a job of its own, which waits for the pod's result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import CPU_PROFILE
from halos_eval.config.suite import Suite
from halos_eval.planning.expected import NOTHING, Expected, packing_of
from halos_eval.planning.jobs import Packed, PlannedJob, StageJob
from halos_eval.planning.packing import Packing
from halos_eval.stages.options import LONGEST_ARGUMENT
from halos_eval.storage import layout

COPY = "--copy-answers-to="
LONGEST_TITLE = 200
"""Characters. Airflow's column for the name of a task instance has 250, and a name of a file 255 bytes."""


class Packs(NamedTuple):
    """What runs in shared pods, and what waits for it."""

    jobs: tuple[StageJob, ...]
    """One job for each pack."""
    packed: Mapping[str, Packed]
    """By title of a stage: the pack that runs it."""


def loads_model(job: PlannedJob) -> bool:
    """Return whether a job that is not done loads the model."""
    if job.done or job.stage not in {"sample", "harness"}:
        return False
    return _loading(job) is not None


def _loading(job: PlannedJob) -> StageJob | None:
    """Return the job that loads the model: the first half of a task that executes a model's code, if it is to run."""
    if job.score is None:
        return job
    return job.generate if job.generate and job.generate.profile != CPU_PROFILE else None


def packing_of_jobs(
    suite: Suite, checkpoint: Checkpoint, jobs: Sequence[PlannedJob], expected: Expected = NOTHING
) -> Packing:
    """Return which of the ``jobs`` of a plan share a pod. Those whose commands are too long for one argument do not."""
    loading = {job.title: job for job in jobs if loads_model(job)}
    packing = packing_of(suite, checkpoint, loading, expected)
    sizes = {
        titles: len(_commands([loading[title] for title in titles]).encode(errors="surrogatepass"))
        for titles in packing.packs
    }
    too_long = {
        title: f"a pod of its own: the commands of {' + '.join(titles)} together have {size} bytes; Linux takes "
        f"{LONGEST_ARGUMENT} in one argument"
        for titles, size in sizes.items()
        for title in titles
        if size > LONGEST_ARGUMENT
    }
    fitting = tuple(titles for titles in packing.packs if titles[0] not in too_long)
    return Packing(fitting, {**packing.why, **too_long})


def packs_of(jobs: Sequence[PlannedJob], packing: Packing, since: datetime, force: bool) -> Packs:
    """Return the packs of ``packing``, for the ``jobs`` of a plan that was made at the time ``since``."""
    titled = {job.title: job for job in jobs}
    packed = {
        title: _packed(titled[title], number, since, force)
        for number, titles in enumerate(packing.packs)
        for title in titles
    }
    made = tuple(_pack([titled[title] for title in titles], since, force) for titles in packing.packs)
    return Packs(made, packed)


def _packed(job: PlannedJob, number: int, since: datetime, force: bool) -> Packed:
    record = job.record
    if job.score:
        record = record.removesuffix(layout.RECORD) + layout.GENERATED
    return Packed(pack=number, record=record, fingerprint=job.fingerprint, since=since, force=force)


def _pack(members: Sequence[PlannedJob], since: datetime, force: bool) -> StageJob:
    """Return the job that runs ``members`` one after the other. They have the same profile."""
    boxes = [half.answers for job in members if (half := _loading(job)) and half.answers]
    options = [f"--since={since.isoformat()}"] if force else []
    first = members[0]
    return StageJob(
        stage="pack",
        task=_title([job.title for job in members]),
        image=first.image,
        argv=("pack", *options, "--", _commands(members)),
        profile=first.profile,
        gpus=first.gpus,
        pool=first.pool,
        manifest=first.manifest,
        boxes=tuple(boxes),
    )


def _title(titles: Sequence[str]) -> str:
    """Return the first ``titles`` that fit, and how many follow. Packs of one plan share none, so theirs differ."""
    text = " + ".join(titles)
    shown = len(titles)
    while len(text) > LONGEST_TITLE and shown > 1:
        shown -= 1
        text = f"{' + '.join(titles[:shown])} and {len(titles) - shown} more"
    return text


def _commands(members: Sequence[PlannedJob]) -> str:
    """Return the command lines of ``members`` as JSON. Escapes would make Chinese text twice as long."""
    loading = [half for job in members if (half := _loading(job))]
    commands = [list(half.argv) for half in loading]
    for number, half in enumerate(half for half in loading if half.answers):
        words = commands[loading.index(half)]
        words[:] = [f"{word.rstrip('/')}/{number}" if word.startswith(COPY) else word for word in words]
    return json.dumps(commands, ensure_ascii=False)
