"""What a suite means for a checkpoint: which commands, which of them have been run, and why the others have to."""

from __future__ import annotations

from pydantic import BaseModel

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import Cluster
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import Suite
from halos_eval.errors import DataUnavailable
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.planner import Planner
from halos_eval.storage import layout
from halos_eval.storage.manifest import Manifest, read_manifest
from halos_eval.storage.records import CheckpointRef, read_model, write_model


class Plan(BaseModel):
    """A suite on a checkpoint."""

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
    """Parts that have no job because the manifest does not have what they need, each with its reason."""
    definitions: dict[str, str] = {}
    """Digest of each part's settings in the suite, as it was then."""
    left_out: tuple[str, ...] = ()
    """Parts of the suite that have never been asked for."""


def suite_manifest(suite: str, root: str, cluster: Cluster) -> Manifest | None:
    """The manifest by which the stages of ``suite`` read; None: each takes from the hub what stands there now."""
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
    """Plan ``suite`` on ``checkpoint`` with results below ``root``. Finds what is wrong before a GPU is used.

    Raises BadInput, StoreError, and DataUnavailable for the checkpoint; for a part only without a ``manifest``.
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
    )


def save_plan(plan: Plan, suite: Suite, root: str) -> None:
    """Keep the plan, so that a summary knows what should be there.

    A run of some parts only keeps the other parts of an earlier plan, if weights and settings are the same, and names
    what was never asked for.
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
    """The plan at ``url``, or None where there is none. Raises StoreError where it is damaged."""
    return read_model(url, Plan)
