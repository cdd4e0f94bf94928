"""What a suite means for a checkpoint: which commands, which of them have been run, and why the others have to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.checkpoints.weights import inspect, to_stage
from halos_eval.config.cluster import CPU_PROFILE, OUTBOX, Volume, load_cluster
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, AlpacaEvalSettings, HarnessSettings, Suite, TaskSettings, place_of
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.hub import cache_root
from halos_eval.stages.fetch import unstaged
from halos_eval.stages.harness.stage import HarnessConfig, harness_job
from halos_eval.stages.identity import Job
from halos_eval.stages.judge.stage import JudgeConfig, judge_job
from halos_eval.stages.options import StageConfig
from halos_eval.stages.sample import SampleConfig, sample_job
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import Manifest, cached_path, checkpoint_part, read_manifest
from halos_eval.storage.records import (
    CheckpointRef,
    Record,
    StageName,
    read_failure,
    read_model,
    read_record,
    write_model,
)

IMAGES: dict[StageName, Literal["worker", "judge"]] = {"sample": "worker", "harness": "worker", "judge": "judge"}


class StageJob(BaseModel):
    """What it takes to run one command: the same for a pod and for a local process."""

    model_config = FROZEN

    stage: StageName | Literal["stage", "summarize"]
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
    outbox: str | None = None
    """Folder of the outbox that it writes to instead of the store, because it gets no network and no secrets."""

    @property
    def title(self) -> str:
        """stage, sample, judge, summarize, or the task's name."""
        return self.task or self.stage

    @property
    def offline(self) -> bool:
        """Whether it reads by a manifest, and so asks the hub for nothing."""
        return self.stage != "stage" and any(word.startswith("--manifest=") for word in self.argv)


class PlannedJob(StageJob):
    """One command of a plan."""

    stage: StageName
    """sample, judge or harness."""
    fingerprint: str
    """What its record will carry."""
    record: str
    """URL of its record."""
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


def suite_manifest(suite: str, root: str) -> Manifest | None:
    """The manifest by which the stages of ``suite`` read; None: each takes from the hub what stands there now."""
    return read_manifest(layout.manifest_url(root, suite)) if load_cluster().can_stage else None


def make_plan(
    suite: Suite,
    checkpoint: Checkpoint,
    root: str,
    force: bool = False,
    judge: str | None = None,
    manifest: Manifest | None = None,
) -> Plan:
    """Plan ``suite`` on ``checkpoint`` with results below ``root``. Finds what is wrong before a GPU is used.

    Raises BadInput, StoreError, and DataUnavailable for the checkpoint; for a part only without a ``manifest``.
    """
    planner = _Planner(suite, checkpoint, root, force, manifest)
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


def staging_job(
    suite: Suite, checkpoint: Checkpoint, root: str, tasks: Sequence[str] = (), force: bool = False
) -> StageJob | None:
    """The job that fetches what ``suite`` (only ``tasks`` of it, if any) and ``checkpoint`` need from the hub.

    None where the manifest has all of it as it is defined now, or where the next stage would not find what it fetches.
    Raises BadInput, StoreError.
    """
    if not load_cluster().can_stage:
        return None
    url = layout.manifest_url(root, suite.name)
    model = to_stage(checkpoint.location, checkpoint.revision)
    manifest = read_manifest(url)
    if manifest and not force and not unstaged(suite.keep(list(tasks)), [model] if model else [], manifest):
        return None
    # Lists as JSON: commas in an item would split it otherwise.
    only = [f"--tasks={json.dumps(tasks)}"] if tasks else []
    models = [json.dumps([model], ensure_ascii=False)] if model else []
    argv = ("stage", f"--manifest={url}", *only, "--", place_of(suite.name), *models)
    return StageJob(stage="stage", image="worker", argv=argv, profile=CPU_PROFILE)


def profile_of(suite: Suite, checkpoint: Checkpoint, own: str | None) -> str:
    """The GPU profile of a part of ``suite`` that has its ``own`` or none: the checkpoint's counts before both."""
    return checkpoint.metadata.profile or own or suite.profile


def summary_job(suite: str, root: str) -> StageJob:
    """The job that writes the table of ``suite``."""
    argv = ["summarize", root, f"--suite={suite}", f"--output={layout.report_url(root, suite)}"]
    if outbox := load_cluster().outbox:
        argv.append(f"--outbox={outbox.mount_path}")
    return StageJob(stage="summarize", image="judge", argv=tuple(argv), profile=CPU_PROFILE)


def _judged_outputs_of(sample: PlannedJob, judged: PlannedJob) -> PlannedJob:
    """A judgement counts only for the outputs that are there: a sample that is drawn again is judged again."""
    record = read_record(judged.record) if sample.done and judged.done else None
    sampled = read_record(sample.record) if record else None
    if not judged.done or (record and sampled and record.provenance.inputs["outputs_sha256"] in sampled.files.values()):
        return judged
    return judged.model_copy(update={"done": False, "why": "the outputs are sampled anew"})


class _Planner:
    def __init__(self, suite: Suite, checkpoint: Checkpoint, root: str, force: bool, manifest: Manifest | None) -> None:
        self.suite, self.checkpoint, self.root, self.force = suite, checkpoint, root, force
        self.cluster = load_cluster()
        self.manifest = manifest
        if manifest and (model := to_stage(checkpoint.location, checkpoint.revision)):
            manifest.needs(checkpoint_part(model))
        self.weights = inspect(checkpoint.location, checkpoint.revision, manifest)

    def part(self, part: str, judge: str | None) -> Sequence[PlannedJob]:
        """The jobs of alpaca_eval or of a task. Raises DataUnavailable with the manifest's reason."""
        if self.manifest:
            self.manifest.needs(part)
        if part == ALPACA_EVAL and self.suite.alpaca_eval:
            return self.alpaca_eval(self.suite.alpaca_eval, judge)
        return [self.task(part, self.suite.tasks[part])]

    def alpaca_eval(self, settings: AlpacaEvalSettings, judge: str | None) -> tuple[PlannedJob, PlannedJob]:
        """Sampling, and the judgement of what is sampled."""
        profile = self._profile(settings.profile)
        sample_config = SampleConfig(
            **settings.sampling.model_dump(exclude={"stop"}),
            **self._common(),
            **self._engine(profile),
            prompts=settings.prompts,
            stop=(*settings.sampling.stop, *self.checkpoint.metadata.stop),
            chat_template=self.checkpoint.metadata.chat_template,
        )
        job = sample_job(sample_config, self.weights, "", self.manifest)
        outputs = filesystem.join(self._folder(job), "outputs.json")
        sample = self._plan(job, sample_config, layout.record_beside(outputs), profile, output=outputs)
        judge_config = JudgeConfig(
            **self._common(),
            outputs=outputs,
            reference=settings.reference,
            annotator=judge or settings.annotator,
            output_dir="",
        )
        job = judge_job(judge_config, sample.fingerprint, job.checkpoint, self.manifest)
        folder = self._folder(job)
        judged = self._plan(job, judge_config, filesystem.join(folder, layout.RECORD), CPU_PROFILE, output_dir=folder)
        return sample, _judged_outputs_of(sample, judged)

    def task(self, task: str, settings: TaskSettings) -> PlannedJob:
        """One lm_eval task. If it executes code on a cluster, it has no network: its results wait in the outbox."""
        profile = self._profile(settings.profile)
        config = HarnessConfig(
            **settings.model_dump(include=set(HarnessSettings.model_fields)),
            **self._common(),
            **self._engine(profile),
            task=task,
            output_dir="",
            include_path=self.suite.include_path,
            chat_template=self.checkpoint.metadata.chat_template if settings.apply_chat_template else None,
        )
        job = harness_job(config, self.weights, "", self.manifest)
        folder = self._folder(job)
        more: dict[str, Any] = {"metric": settings.metric}
        output_dir = folder
        if settings.confirm_unsafe_code and self.cluster.kubernetes:
            more["outbox"] = folder.removeprefix(f"{self.root.rstrip('/')}/")
            output_dir = f"file://{self._outbox(task).mount_path}"
        planned = self._plan(job, config, filesystem.join(folder, layout.RECORD), profile, output_dir=output_dir)
        return planned.model_copy(update=more)

    def _outbox(self, task: str) -> Volume:
        if self.cluster.outbox is None:
            raise BadInput(
                f"{task} executes code that the model writes, so its pod gets no network, and there is no volume for "
                f"its results: add kubernetes.volumes.{OUTBOX} to the cluster's file, or leave {task} out"
            )
        return self.cluster.outbox

    def _profile(self, own: str | None) -> str:
        return profile_of(self.suite, self.checkpoint, own)

    def _engine(self, profile: str) -> dict[str, Any]:
        return {
            "model": self.checkpoint.location,
            "revision": self._revision(),
            "tensor_parallel_size": self.cluster.gpu_profile(profile).parts,
            "gpu_memory_utilization": self.suite.gpu_memory_utilization,
            "enforce_eager": self.suite.enforce_eager,
        }

    def _revision(self) -> str | None:
        """What is planned is what runs: the branch by which the manifest finds the commit, else the commit."""
        if self.manifest:
            return self.checkpoint.revision
        return None if self.weights.adapter else self.weights.revision

    def _common(self) -> dict[str, Any]:
        common = {"name": self.checkpoint.name, "suite": self.suite.name, "force": self.force}
        return common | ({"manifest": self._place_of(self.manifest)} if self.manifest else {})

    def _place_of(self, manifest: Manifest) -> str:
        """Where the stages find this very manifest, whatever is staged meanwhile: code's pods reach no store."""
        if self.cluster.cache:
            return filesystem.join(self.cluster.cache.mount_path, cached_path(manifest))
        cached = cache_root() / cached_path(manifest)
        return str(cached) if cached.is_file() else layout.manifest_url(self.root, self.suite.name)

    def _folder(self, job: Job) -> str:
        return layout.stage_folder(self.root, self.checkpoint.name, job.stage, job.task, job.fingerprint)

    def _plan(self, job: Job, config: StageConfig, record: str, profile: str, **places: str) -> PlannedJob:
        config = config.model_copy(update={**places, "expect": job.fingerprint})
        done, why = self._state(job, record)
        return PlannedJob(
            stage=job.stage,
            task=job.task,
            image=IMAGES[job.stage],
            argv=(job.stage, *config.argv()),
            profile=profile,
            gpus=0 if profile == CPU_PROFILE else self.cluster.gpu_profile(profile).gpus,
            fingerprint=job.fingerprint,
            record=record,
            done=done,
            why=why,
        )

    def _state(self, job: Job, record: str) -> tuple[bool, str]:
        if self.force:
            return False, "forced"
        if found := read_record(record):
            return True, f"there since {found.provenance.ended:%Y-%m-%d %H:%M} UTC"
        if failure := read_failure(layout.failure_beside(record)):
            return False, f"failed before: {failure.error}: {failure.message}"
        return False, self._difference(job)

    def _difference(self, job: Job) -> str:
        """What has changed since the newest record of the same stage and task."""
        parent = self._folder(job).rsplit("/", 1)[0]
        records = [record for url in filesystem.find(parent, layout.RECORD) if (record := read_record(url))]
        if not records:
            return "never run"
        newest = max(records, key=lambda record: record.provenance.ended)
        return f"changed since {newest.provenance.ended:%Y-%m-%d}: {', '.join(_changes(newest, job))}"


def _changes(old: Record, new: Job) -> list[str]:
    changes = []
    for part in ("settings", "inputs", "tools"):
        before, after = old.identity.get(part, {}), new.identity[part]
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                values = f" {before.get(key)} -> {after.get(key)}" if part != "inputs" else ""
                changes.append(key + values)
    return changes or ["nothing that is named"]


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
