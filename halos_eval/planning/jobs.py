"""The commands of an evaluation, each of which is a pod or a local process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.checkpoints.weights import to_fetch
from halos_eval.config.cluster import CPU_PROFILE, Cluster
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, Suite, place_of
from halos_eval.stages.fetch import unfetched
from halos_eval.storage import layout
from halos_eval.storage.manifest import read_manifest
from halos_eval.storage.records import StageName


class StageJob(BaseModel):
    """What it takes to run one command: the same for a pod and for a local process."""

    model_config = FROZEN

    stage: StageName | Literal["fetch", "summarize"]
    """stage, sample, judge, harness or summarize."""
    task: str | None = None
    """lm_eval task of a harness stage."""
    image: Literal["worker", "judge"]
    """Which image, or virtual environment, runs it."""
    argv: tuple[str, ...]
    """Words after ``halos-eval``."""
    profile: str
    """What its pod gets: a profile of the cluster's file."""
    gpus: int = 0
    """GPUs of that profile: what it takes from the pool."""
    manifest: str | None = None
    """Manifest by which it reads, so that it asks the hub for nothing."""
    outbox: str | None = None
    """Folder of the outbox that it writes to instead of the store, because it gets no network and no secrets."""

    @property
    def title(self) -> str:
        """stage, sample, judge, summarize, or the task's name."""
        return self.task or self.stage


class PlannedJob(StageJob):
    """One command of a plan."""

    stage: StageName
    """sample, judge or harness."""
    fingerprint: str
    """What its record will carry."""
    record: str
    """URL of its record."""
    judge: str | None = None
    """Name or file of the judge, for a judge stage."""
    tensor_parallel_size: int = 1
    """GPUs over which the model is split."""
    metric: str | None = None
    """The metric that counts for ``avg``; None: the first that lm_eval prints."""
    done: bool
    """Whether the record is there."""
    why: str
    """Why it is done, or has to be run."""

    @property
    def part(self) -> str:
        """The part of the suite that it belongs to: alpaca_eval or the task."""
        return self.task or ALPACA_EVAL


def fetch_job(
    suite: Suite,
    checkpoint: Checkpoint,
    root: str,
    cluster: Cluster,
    tasks: Sequence[str] = (),
    force: bool = False,
) -> StageJob | None:
    """The job that fetches what ``suite`` (only ``tasks`` of it, if any) and ``checkpoint`` need from the hub.

    None where the manifest has all of it as it is defined now, or where the next stage would not find what it fetches.
    Raises BadInput, StoreError.
    """
    if not cluster.can_fetch:
        return None
    url = layout.manifest_url(root, suite.name)
    model = to_fetch(checkpoint.location, checkpoint.revision)
    manifest = read_manifest(url)
    if manifest and not force and not unfetched(suite.keep(list(tasks)), [model] if model else [], manifest):
        return None
    # Lists as JSON: commas in an item would split it otherwise.
    only = [f"--tasks={json.dumps(tasks)}"] if tasks else []
    models = [json.dumps([model], ensure_ascii=False)] if model else []
    argv = ("fetch", f"--manifest={url}", *only, "--", place_of(suite.name), *models)
    return StageJob(stage="fetch", image="worker", argv=argv, profile=CPU_PROFILE)


def summary_job(suite: str, root: str, cluster: Cluster) -> StageJob:
    """The job that writes the table of ``suite``."""
    argv = ["summarize", root, f"--suite={suite}", f"--output={layout.report_url(root, suite)}"]
    if outbox := cluster.outbox:
        argv.append(f"--outbox={outbox.mount_path}")
    return StageJob(stage="summarize", image="judge", argv=tuple(argv), profile=CPU_PROFILE)
