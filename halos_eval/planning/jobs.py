"""Jobs: the commands of an evaluation. Each runs in a pod or in a local process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.checkpoints.weights import in_storage, to_fetch
from halos_eval.config.cluster import CPU_PROFILE, Cluster
from halos_eval.config.policy import Gate
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, Suite, place_of, title_of
from halos_eval.stages.fetch import unfetched
from halos_eval.stages.identity import Identity
from halos_eval.storage import layout
from halos_eval.storage.manifest import read_manifest
from halos_eval.storage.records import StageName


class Packed(BaseModel):
    """What a stage that shares a pod waits for."""

    model_config = FROZEN

    pack: int
    """Index of the pack that runs it."""
    record: str
    """URL of the record that ends it."""
    fingerprint: str
    """Fingerprint of that record."""
    since: datetime
    """UTC time of the plan. Earlier failure notes do not count, nor do earlier records if the run is forced."""
    force: bool = False
    """Whether the stage runs again although its record exists."""


class StageJob(BaseModel):
    """One command with its resources, for a pod or a local process."""

    model_config = FROZEN

    stage: StageName | Literal["fetch", "serve", "summarize", "pack"]
    """fetch, sample, serve, judge, harness or summarize; pack for several stages in one pod."""
    task: str | None = None
    """lm_eval task of a harness stage."""
    image: Literal["worker", "judge"]
    """Image, or virtual environment, that runs the command."""
    argv: tuple[str, ...]
    """Arguments of ``halos-eval``."""
    profile: str
    """Profile of the cluster file, with the resources of the pod."""
    gpus: int = 0
    """GPUs of the profile, which the job takes from the pool."""
    pool: str | None = None
    """Pool of the GPUs; None for a job without GPUs."""
    manifest: str | None = None
    """Manifest from which the job reads data; None: it reads from the hub."""
    judge: str | None = None
    """Name or file of the judge, or the JSON of one that is served, for a judge stage."""
    label: str | None = None
    """Name of a judge beside the suite's main judge, in titles and columns."""
    outbox: str | None = None
    """Folder of the outbox for the results of a job without network and secrets; None: it writes to the store."""
    server: tuple[str, ...] = ()
    """Arguments of the ``halos-eval serve`` that runs beside this judge stage, on the GPUs; none without one."""
    answers: str | None = None
    """Folder of the outbox with a task's answers: a job with ``outbox`` reads it, another one writes it."""
    reads: tuple[str, ...] = ()
    """All that a job with ``outbox`` reads besides the answers: paths on the cluster's volumes."""
    boxes: tuple[str, ...] = ()
    """Folders of the outbox in which a pack keeps answers of its stages, each mounted below the outbox by its index."""
    packed: Packed | None = None
    """The pack that runs this stage; None: it has a pod of its own."""
    unless: str | None = None
    """URL of a record that makes a job with ``outbox`` needless. Others reach the store and look for it themselves."""

    @property
    def title(self) -> str:
        """The name of the lm_eval task, or the stage; judge@LABEL for a judge beside the main one."""
        return title_of(self.stage, self.task, self.label)

    @property
    def command(self) -> str:
        """The command of ``halos-eval``: the stage, or ``score`` for the second half of a harness stage."""
        return self.argv[0]

    def owned_by(self, owner: str) -> tuple[str, ...]:
        """Return the arguments of a stage that ``owner`` runs, see `halos_eval.storage.claims`."""
        owned = {"sample", "judge", "harness", "pack"}
        return self.argv_with(f"--owner={owner}") if self.stage in owned else self.argv

    def argv_with(self, *options: str) -> tuple[str, ...]:
        """Return the arguments with more ``options``. They come first, because positional arguments are the last."""
        command, *words = self.argv
        return (command, *options, *words)

    def with_server(self, exchange: str) -> tuple[StageJob, StageJob]:
        """Return the two jobs of a judge that is served, which share the folder ``exchange``: the stage, the server."""
        argv, server = ((words[0], f"--exchange={exchange}", *words[1:]) for words in (self.argv, self.server))
        serve = StageJob(
            stage="serve", image="worker", argv=server, profile=self.profile, gpus=self.gpus, manifest=self.manifest
        )
        return self.model_copy(update={"argv": argv, "server": (), "gpus": 0}), serve


class PlannedJob(StageJob):
    """One command of a plan."""

    stage: StageName
    """sample, judge or harness."""
    fingerprint: str
    """Fingerprint of its record."""
    identity: Identity | None = None
    """Everything that determines its scores; None in plans that other tools wrote."""
    record: str
    """URL of its record."""
    tensor_parallel_size: int = 1
    """GPUs over which the model is split."""
    metric: str | None = None
    """Metric for the column ``avg``; None: the first that lm_eval prints."""
    done: bool
    """Whether the record exists."""
    why: str
    """Why the job is done, or must run."""
    # Only the halves of a job have these. They are not saved, so that a plan keeps its format.
    answers: str | None = Field(None, exclude=True)
    reads: tuple[str, ...] = Field((), exclude=True)
    boxes: tuple[str, ...] = Field((), exclude=True)
    packed: Packed | None = Field(None, exclude=True)
    unless: str | None = Field(None, exclude=True)
    generate: StageJob | None = Field(None, exclude=True)
    """First half of a task that executes a model's code, in place of this job; None if its answers exist."""
    score: StageJob | None = Field(None, exclude=True)
    """Second half of such a task; None for others."""

    @property
    def part(self) -> str:
        """The part of the suite: alpaca_eval or the task."""
        return self.task or ALPACA_EVAL


def fetch_job(
    suite: Suite,
    checkpoint: Checkpoint,
    root: str,
    cluster: Cluster,
    tasks: Sequence[str] = (),
    force: bool = False,
    loaded: bool = True,
) -> StageJob | None:
    """Return the job that fetches what ``suite`` and ``checkpoint`` need from the hub. Raise BadInput, StoreError.

    With ``tasks`` it fetches only for these. Return None if the manifest has everything as the suite defines it now, or
    if the pods share no cache, so that the other stages would not find the data. A checkpoint in object storage is
    fetched each time if some stage will load it (``loaded``), because only the job sees whether the cache still has it.
    """
    if not cluster.can_fetch:
        return None
    url = layout.manifest_url(root, suite.name)
    model = to_fetch(checkpoint.location, checkpoint.revision)
    manifest = read_manifest(url)
    copied = loaded and in_storage(checkpoint.location)
    wanted = [model] if model else []
    if manifest and not force and not copied and not unfetched(suite.keep(list(tasks)), wanted, manifest):
        return None
    # Lists as JSON, because the command line splits other lists at commas.
    only = [f"--tasks={json.dumps(tasks)}"] if tasks else []
    models = [json.dumps([model or checkpoint.location], ensure_ascii=False)] if model or copied else []
    store = [f"--store={root}", f"--name={checkpoint.name}", f"--weights-gib={cluster.weights_gib}"] if copied else []
    argv = ("fetch", f"--manifest={url}", *only, *store, "--", place_of(suite.name), *models)
    return StageJob(stage="fetch", image="worker", argv=argv, profile=CPU_PROFILE)


def summary_job(
    suite: str, checkpoint: str, root: str, cluster: Cluster, gate: Gate | None = None, margin: float = 0
) -> StageJob:
    """Return the job that writes the table of ``suite``, in which the row of ``checkpoint`` changed.

    With a ``gate`` of the policy it also compares the checkpoint.
    """
    output = layout.report_url(root, suite)
    argv = ["summarize", root, f"--suite={suite}", f"--checkpoint={checkpoint}", f"--output={output}"]
    if outbox := cluster.outbox:
        argv.append(f"--outbox={outbox.mount_path}")
    if gate:
        argv += [f"--gate={gate.model_dump_json(exclude_defaults=True)}", f"--margin={margin:g}"]
    return StageJob(stage="summarize", image="judge", argv=tuple(argv), profile=CPU_PROFILE)
