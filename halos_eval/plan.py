"""What a suite means for a checkpoint: which commands, which of them have been run, and why the others have to."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from halos_eval import layout, store
from halos_eval.checkpoint import inspect
from halos_eval.fingerprint import digest_json
from halos_eval.record import CheckpointRef, Record, StageName, read_failure, read_model, read_record, write_model
from halos_eval.registry.folders import Checkpoint
from halos_eval.settings import FROZEN
from halos_eval.stages.base import Job, StageConfig
from halos_eval.stages.harness import HarnessConfig, HarnessSettings, harness_job
from halos_eval.stages.judge import JudgeConfig, judge_job
from halos_eval.stages.sample import SampleConfig, sample_job
from halos_eval.suite import ALPACA_EVAL, Suite

IMAGES: dict[StageName, Literal["worker", "judge"]] = {"sample": "worker", "harness": "worker", "judge": "judge"}


class PlannedJob(BaseModel):
    """One command of a plan."""

    model_config = FROZEN

    stage: StageName
    """sample, judge or harness."""
    task: str | None = None
    """lm_eval task of a harness stage."""
    image: Literal["worker", "judge"]
    """Which image, or virtual environment, runs it."""
    argv: tuple[str, ...]
    """Words after ``halos-eval``."""
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
    def title(self) -> str:
        """sample, judge, or the task's name."""
        return self.task or self.stage


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
    definitions: dict[str, str] = {}
    """Digest of each part's settings in the suite, as it was then."""
    left_out: tuple[str, ...] = ()
    """Parts of the suite that have never been asked for."""


def make_plan(suite: Suite, checkpoint: Checkpoint, root: str, force: bool = False, judge: str | None = None) -> Plan:
    """Plan ``suite`` on ``checkpoint`` with results below ``root``. Finds what is wrong before a GPU is used.

    Raises BadInput, DataUnavailable, StoreError.
    """
    weights = inspect(checkpoint.location)
    planner = _Planner(suite, checkpoint, root, force)
    jobs: list[PlannedJob] = []
    if suite.alpaca_eval:
        settings = suite.alpaca_eval
        sample_config = SampleConfig(
            **settings.sampling.model_dump(exclude={"stop"}),
            **planner.common(),
            model=checkpoint.location,
            prompts=settings.prompts,
            stop=(*settings.sampling.stop, *checkpoint.metadata.stop),
            chat_template=checkpoint.metadata.chat_template,
            tensor_parallel_size=suite.tensor_parallel_size,
            gpu_memory_utilization=suite.gpu_memory_utilization,
            enforce_eager=suite.enforce_eager,
        )
        job = sample_job(sample_config, weights, "")
        folder = planner.folder(job)
        sample = planner.plan(
            job,
            sample_config,
            layout.record_beside(store.join(folder, "outputs.json")),
            output=store.join(folder, "outputs.json"),
        )
        judge_config = JudgeConfig(
            **planner.common(),
            outputs=store.join(folder, "outputs.json"),
            reference=settings.reference,
            annotator=judge or settings.annotator,
            output_dir="",
        )
        job = judge_job(judge_config, sample.fingerprint, job.checkpoint)
        folder = planner.folder(job)
        judged = planner.plan(job, judge_config, store.join(folder, layout.RECORD), output_dir=folder)
        jobs += [sample, _judged_outputs_of(sample, judged)]
    for task, task_settings in suite.tasks.items():
        config = HarnessConfig(
            **task_settings.model_dump(include=set(HarnessSettings.model_fields)),
            **planner.common(),
            model=checkpoint.location,
            task=task,
            output_dir="",
            include_path=suite.include_path,
            chat_template=checkpoint.metadata.chat_template if task_settings.apply_chat_template else None,
            tensor_parallel_size=suite.tensor_parallel_size,
            gpu_memory_utilization=suite.gpu_memory_utilization,
            enforce_eager=suite.enforce_eager,
        )
        job = harness_job(config, weights, "")
        folder = planner.folder(job)
        planned = planner.plan(job, config, store.join(folder, layout.RECORD), output_dir=folder)
        jobs.append(planned.model_copy(update={"metric": task_settings.metric}))
    reference = CheckpointRef(name=checkpoint.name, location=checkpoint.location, digest=weights.digest)
    return Plan(suite=suite.name, checkpoint=reference, tags=checkpoint.metadata.tags, jobs=tuple(jobs))


def _judged_outputs_of(sample: PlannedJob, judged: PlannedJob) -> PlannedJob:
    """A judgement counts only for the outputs that are there: a sample that is drawn again is judged again."""
    record = read_record(judged.record) if sample.done and judged.done else None
    sampled = read_record(sample.record) if record else None
    if not judged.done or (record and sampled and record.provenance.inputs["outputs_sha256"] in sampled.files.values()):
        return judged
    return judged.model_copy(update={"done": False, "why": "the outputs are sampled anew"})


class _Planner:
    def __init__(self, suite: Suite, checkpoint: Checkpoint, root: str, force: bool) -> None:
        self.suite, self.checkpoint, self.root, self.force = suite, checkpoint, root, force

    def common(self) -> dict[str, Any]:
        return {"name": self.checkpoint.name, "suite": self.suite.name, "force": self.force}

    def folder(self, job: Job) -> str:
        return layout.stage_folder(self.root, self.checkpoint.name, job.stage, job.task, job.fingerprint)

    def plan(self, job: Job, config: StageConfig, record: str, **places: str) -> PlannedJob:
        config = config.model_copy(update={**places, "expect": job.fingerprint})
        done, why = self._state(job, record)
        return PlannedJob(
            stage=job.stage,
            task=job.task,
            image=IMAGES[job.stage],
            argv=(job.stage, *config.argv()),
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
        parent = self.folder(job).rsplit("/", 1)[0]
        records = [record for url in store.find(parent, layout.RECORD) if (record := read_record(url))]
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
    jobs = {job.title: job for job in plan.jobs}
    definitions = {part: digest_json(suite.settings_of(part).model_dump(mode="json")) for part in suite.parts}
    earlier = read_plan(url)
    if earlier and earlier.checkpoint.digest == plan.checkpoint.digest:
        same = {part for part, digest in earlier.definitions.items() if definitions.get(part) == digest}
        jobs = {job.title: job for job in earlier.jobs if _part(job) in same} | jobs
    planned = {_part(job) for job in jobs.values()}
    left_out = tuple(part for part in suite.parts if part not in planned)
    update = {"jobs": tuple(jobs.values()), "left_out": left_out, "definitions": definitions}
    write_model(url, plan.model_copy(update=update))


def read_plan(url: str) -> Plan | None:
    """The plan at ``url``, or None where there is none. Raises StoreError where it is damaged."""
    return read_model(url, Plan)


def _part(job: PlannedJob) -> str:
    return job.task or ALPACA_EVAL
