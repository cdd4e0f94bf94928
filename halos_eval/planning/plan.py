"""The plan of a suite on a checkpoint: its jobs, which of them are done, and why the others must run."""

from __future__ import annotations

from pydantic import BaseModel

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import Cluster
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import WARN_ABOVE, Suite
from halos_eval.errors import DataUnavailable
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.planner import Planner
from halos_eval.storage import layout
from halos_eval.storage.manifest import Manifest, read_manifest
from halos_eval.storage.records import CheckpointRef, read_model, write_model


class Plan(BaseModel):
    """The jobs of a suite on a checkpoint."""

    model_config = FROZEN

    suite: str
    """Name of the suite."""
    checkpoint: CheckpointRef
    """The checkpoint with its digest."""
    tags: dict[str, str] = {}
    """The checkpoint's tags."""
    jobs: tuple[PlannedJob, ...]
    """sample, judge, then the tasks in the suite's order."""
    unavailable: dict[str, str] = {}
    """Parts without a job because their data is unavailable, with the reasons."""
    definitions: dict[str, str] = {}
    """Digest of each part's settings in the suite when the plan was saved."""
    left_out: tuple[str, ...] = ()
    """Parts of the suite that no run has selected yet."""
    warn_above: float = WARN_ABOVE
    """The suite's threshold for warnings."""


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
    data of a part becomes an entry of ``unavailable`` instead of an error.
    """
    planner = Planner(suite, checkpoint, root, cluster, force, manifest)
    jobs: list[PlannedJob] = []
    unavailable = {}
    for part in suite.parts:
        try:
            jobs += planner.part(part, judge)
        except DataUnavailable as error:
            if manifest is None:
                raise
            unavailable[part] = str(error)
    reference = CheckpointRef(name=checkpoint.name, location=checkpoint.location, digest=planner.weights.digest)
    return Plan(
        suite=suite.name,
        checkpoint=reference,
        tags=checkpoint.metadata.tags,
        jobs=tuple(jobs),
        unavailable=unavailable,
        warn_above=suite.warn_above,
    )


def save_plan(plan: Plan, suite: Suite, root: str) -> None:
    """Save the plan, so that the summary can tell which results are missing.

    If the run selected only some parts, the others are kept from the earlier plan, unless weights or settings changed.
    Parts that no run has selected are listed in ``left_out``.
    """
    url = layout.plan_url(root, plan.suite, plan.checkpoint.name)
    jobs, unavailable, definitions = list(plan.jobs), plan.unavailable, suite.definitions
    earlier = read_plan(url)
    if earlier and earlier.checkpoint.digest == plan.checkpoint.digest:
        same = {part for part, digest in earlier.definitions.items() if definitions.get(part) == digest}
        same -= {job.part for job in plan.jobs} | plan.unavailable.keys()
        jobs = [job for job in earlier.jobs if job.part in same] + jobs
        unavailable = {part: why for part, why in earlier.unavailable.items() if part in same} | unavailable
    planned = {job.part for job in jobs} | unavailable.keys()
    left_out = tuple(part for part in suite.parts if part not in planned)
    update = {"jobs": tuple(jobs), "unavailable": unavailable, "left_out": left_out, "definitions": definitions}
    write_model(url, plan.model_copy(update=update))


def read_plan(url: str) -> Plan | None:
    """Return the plan at ``url``, or None if there is none. Raise StoreError if it is damaged."""
    return read_model(url, Plan)
