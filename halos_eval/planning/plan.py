"""The plan of a suite on a checkpoint: its jobs, which of them are done, and why the others must run."""

from __future__ import annotations

import logging
from typing import Literal

from pydantic import BaseModel, Field

from halos_eval.checkpoints.known import KnownWeights
from halos_eval.checkpoints.registry import Checkpoint, Moment
from halos_eval.config.cluster import Cluster
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import WARN_ABOVE, Suite
from halos_eval.digests import digest_json
from halos_eval.errors import DataUnavailable
from halos_eval.planning.chat import NoChatTemplate, scored_metadata
from halos_eval.planning.definition import UNKNOWN, Definitions, PartDefinition, SuiteDefinition
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.planner import Planner
from halos_eval.stages import tools
from halos_eval.stages.chat_template import read_template
from halos_eval.storage import changes, layout
from halos_eval.storage.claims import WAIT, claimed, this_process
from halos_eval.storage.manifest import Manifest, read_manifest
from halos_eval.storage.records import CheckpointRef, read_model, readable, update_model
from halos_eval.storage.series import save_series

log = logging.getLogger(__name__)

SAMPLING = "sample"
"""Key of ``Plan.definitions`` with the digest of the sample stage alone. No task has this name."""


class Plan(BaseModel):
    """The jobs of a suite on a checkpoint."""

    model_config = FROZEN

    version: Literal[2]
    """Version of this format."""
    suite: str
    """Name of the suite."""
    checkpoint: CheckpointRef
    """The checkpoint with its digest."""
    metadata: str = ""
    """Digest of the checkpoint's metadata that determine scores: chat template, stop strings, thinking."""
    tags: dict[str, str] = {}
    """The checkpoint's tags."""
    registered: Moment | None = None
    """Time of the checkpoint's registration; None if it is unknown."""
    jobs: tuple[PlannedJob, ...]
    """sample, the judges, then the tasks in the suite's order."""
    unavailable: dict[str, str] = {}
    """Parts without a job because their data or chat template is unavailable, with the reasons."""
    definitions: dict[str, str] = {}
    """Digest of each part's definition when its jobs were planned, and that of ``sample`` alone."""
    left_out: tuple[str, ...] = ()
    """Parts of the suite that no run has selected yet."""
    trials: tuple[PlannedJob, ...] = ()
    """Jobs of other judges than the suite's. They are history for the cost, but no results of the suite."""
    warn_above: float = WARN_ABOVE
    """The suite's threshold for warnings."""
    known: KnownWeights | None = Field(None, exclude=True, repr=False)
    """The state of the weights, which is saved apart."""


def suite_manifest(suite: str, root: str, cluster: Cluster) -> Manifest | None:
    """Return the manifest of ``suite``; None if there is none, or if the stages read from the hub directly."""
    return read_manifest(layout.manifest_url(root, suite)) if cluster.can_fetch else None


def make_plan(
    suite: Suite,
    checkpoint: Checkpoint,
    root: str,
    cluster: Cluster,
    force: bool = False,
    judge: str | None = None,
    manifest: Manifest | None = None,
) -> Plan:
    """Plan ``suite`` on ``checkpoint`` with results below ``root``. Find errors before a GPU is used.

    Raise BadInput, StoreError, and DataUnavailable if the checkpoint is unavailable. With a ``manifest``, unavailable
    data of a part becomes an entry of ``unavailable`` instead of an error. So does a missing chat template.
    """
    definitions = Definitions(suite, manifest, judge, root)
    planner = Planner(definitions, checkpoint, root, cluster, force)
    jobs: list[PlannedJob] = []
    unavailable = {}
    for part in suite.parts:
        try:
            jobs += planner.part(part)
        except DataUnavailable as error:
            if manifest is None:
                raise
            unavailable[part] = str(error)
        except NoChatTemplate as error:  # tasks with plain text run
            unavailable[part] = str(error)
    reference = CheckpointRef(name=checkpoint.name, location=checkpoint.location, digest=planner.weights.digest)
    template = read_template(checkpoint.metadata.chat_template)
    return Plan(
        version=2,
        suite=suite.name,
        checkpoint=reference,
        metadata=digest_json([template, *scored_metadata(checkpoint.metadata)]),
        tags=checkpoint.metadata.tags,
        registered=checkpoint.registered,
        jobs=tuple(jobs),
        unavailable=unavailable,
        known=planner.known,
        warn_above=suite.warn_above,
    )


def save_plan(plan: Plan, suite: Suite, root: str, manifest: Manifest | None = None) -> None:
    """Save the plan, the definition of the whole ``suite``, and the state of the weights. Raise StoreError, Busy.

    The summary tells from them which results are missing and which are not current. If the run selected only some
    parts, the others are kept from the earlier plan, unless the checkpoint or their definitions changed. Parts that no
    run has selected are listed in ``left_out``. Jobs of another judge than the suite's are a trial, and not saved.
    """
    definition = Definitions(suite, manifest, root=root).document
    update_model(layout.definition_url(root, suite.name), definition)
    save_series(root, tools.versions())
    if plan.known:
        update_model(layout.weights_url(root, plan.checkpoint.name), plan.known)
    url = layout.plan_url(root, plan.suite, plan.checkpoint.name)
    # A process that saves other parts at the same moment reads what this one has written.
    with claimed(layout.claims_of(url), this_process(), WAIT) as confirm:
        merged = _merged(plan, _earlier(url), suite, definition)
        confirm()
        update_model(url, merged)
    changes.note(root, plan.suite, plan.checkpoint.name)


def _merged(plan: Plan, earlier: Plan | None, suite: Suite, definition: SuiteDefinition) -> Plan:
    """Return ``plan`` with the parts of the ``earlier`` one that are still as the suite defines them."""
    digests = {part: one.digest for part, one in definition.parts.items()}
    if sampling := next((one.sampling for one in definition.parts.values() if one.sampling), UNKNOWN):
        digests[SAMPLING] = sampling
    known = [(job, _as_titled(job, definition.parts[job.part])) for job in plan.jobs]
    trials = {str(job.judge): job for job, titled in known if titled is None}
    jobs, unavailable = [titled for _, titled in known if titled], dict(plan.unavailable)
    if earlier and (earlier.checkpoint.digest, earlier.metadata) == (plan.checkpoint.digest, plan.metadata):
        # The definition of a part without data is unknown: its jobs are kept with their own.
        digests |= {part: digest for part, digest in earlier.definitions.items() if digests.get(part) == UNKNOWN}
        same = {part for part, digest in earlier.definitions.items() if digests.get(part) == digest}
        same -= plan.unavailable.keys()
        titles = {job.title for job in jobs}
        available = {part: one for part, one in definition.parts.items() if part not in plan.unavailable}
        kept = [job for part, one in available.items() for job in as_defined(earlier, part, one)]
        jobs = [job for job in kept if job.title not in titles] + jobs
        trials = {str(job.judge): job for job in earlier.trials} | trials
        planned = {job.part for job in plan.jobs}
        unavailable |= {part: why for part, why in earlier.unavailable.items() if part in same - planned}
    planned = {job.part for job in jobs} | unavailable.keys()
    left_out = tuple(part for part in suite.parts if part not in planned)
    jobs.sort(key=lambda job: (suite.parts.index(job.part), job.stage == "judge", job.label or ""))
    update = {"jobs": tuple(jobs), "unavailable": unavailable, "left_out": left_out, "definitions": digests}
    return plan.model_copy(update=update | {"trials": tuple(trials.values())})


def as_defined(plan: Plan, part: str, definition: PartDefinition) -> list[PlannedJob]:
    """Return the jobs of a part that were planned as it is defined now, with their titles of now.

    Judges are compared by content, so one that is added, or becomes the main one, outdates no other results.
    """
    jobs = [job for job in plan.jobs if job.part == part]
    same = definition.digest in {UNKNOWN, plan.definitions.get(part)}
    if not definition.judges:
        return jobs if same else []
    if not same and definition.sampling != plan.definitions.get(SAMPLING):
        return []
    judged = [job for job in (*jobs, *plan.trials) if job.stage == "judge" and (same or job.identity)]
    titled = {found.title: found for job in reversed(judged) if (found := _as_titled(job, definition))}
    sampled = [job for job in jobs if job.stage == "sample"]
    return [*sampled, *sorted(titled.values(), key=lambda job: job.label or "")]


def _as_titled(job: PlannedJob, definition: PartDefinition) -> PlannedJob | None:
    """Return a job with its title in the suite of now; None for a judge that the suite does not have."""
    if job.stage != "judge" or not definition.judges or job.identity is None:
        return job
    own = job.identity.on("").definition
    for one in definition.judges:
        if one.on("").definition == own:
            identity = job.identity.model_copy(update={"label": one.label})
            return job.model_copy(update={"label": one.label, "identity": identity})
    return None


def _earlier(url: str) -> Plan | None:
    plan, damage = readable(url, Plan)
    if damage:
        log.warning("the earlier plan is replaced: %s", damage)
    return plan


def read_plan(url: str) -> Plan | None:
    """Return the plan at ``url``, or None if there is none. Raise StoreError if it is damaged."""
    return read_model(url, Plan)
