"""The jobs of one suite on one checkpoint, each with its command line and the reason why it must run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from halos_eval.checkpoints.download import Copy, cached_copy
from halos_eval.checkpoints.known import Reader, carried, known_weights, recall, recall_copy
from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.checkpoints.weights import in_storage, inspect, to_fetch
from halos_eval.config.chat import ChatSettings
from halos_eval.config.cluster import ANSWERS, CACHE, CPU_PROFILE, OUTBOX, Cluster, Volume
from halos_eval.config.served_judge import JudgeChoice, ServedJudge
from halos_eval.config.suite import AlpacaEvalSettings, Suite, TaskSettings
from halos_eval.errors import BadInput
from halos_eval.hub import cache_root
from halos_eval.planning.changes import changes, newest_record
from halos_eval.planning.chat import check_template, harness_of, sampling_of
from halos_eval.planning.definition import Definitions
from halos_eval.planning.jobs import PlannedJob, StageJob
from halos_eval.stages.harness.options import HarnessConfig, ScoreConfig, check_limits
from halos_eval.stages.harness.own_tasks import outside
from halos_eval.stages.identity import Identity
from halos_eval.stages.judge.options import JudgeConfig
from halos_eval.stages.options import StageConfig, argv_of
from halos_eval.stages.sample import SampleConfig
from halos_eval.stages.serve import ServeConfig
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import Manifest, cached_path, checkpoint_part
from halos_eval.storage.records import Failure, StageName, readable, readable_record

IMAGES: dict[StageName, Literal["worker", "judge"]] = {"sample": "worker", "harness": "worker", "judge": "judge"}


def profile_of(suite: Suite, checkpoint: Checkpoint, own: str | None) -> str:
    """Return the GPU profile of a part: the checkpoint's, else the part's ``own``, else the suite's."""
    return checkpoint.metadata.profile or own or suite.profile


class Planner:
    """Planner of the parts of a suite for one checkpoint."""

    def __init__(
        self,
        definitions: Definitions,
        checkpoint: Checkpoint,
        root: str,
        cluster: Cluster,
        force: bool,
    ) -> None:
        """Inspect the checkpoint's weights. Raise BadInput, DataUnavailable."""
        self.definitions, self.checkpoint, self.root, self.cluster = definitions, checkpoint, root, cluster
        self.suite, self.manifest, self.force = definitions.suite, definitions.manifest, force
        location, revision = checkpoint.location, checkpoint.revision
        if self.manifest and (model := to_fetch(location, revision)):
            self.manifest.needs(checkpoint_part(model))
        self.copy = self._copy_of(location)
        reader = Reader(recall(root, checkpoint.name, location, revision), self.copy)
        self.weights = inspect(location, revision, self.manifest, reader, checkpoint.root)
        self.known = known_weights(location, revision, self.weights)
        self.reference = self.weights.reference(checkpoint.name, location)

    def _copy_of(self, location: str) -> Copy | None:
        if not in_storage(location):
            return None
        if not self.cluster.can_fetch:
            raise BadInput(
                f"{location} is in object storage, but the pods share no volume {CACHE} for a copy of it. Add "
                f"kubernetes.volumes.{CACHE} to the cluster file, or copy it to a folder"
            )
        return recall_copy(self.root, self.checkpoint.name)

    def part(self, part: str) -> Sequence[PlannedJob]:
        """Return the jobs of alpaca_eval or of a task.

        Raise BadInput, NoChatTemplate, and DataUnavailable with the manifest's reason.
        """
        identities = self.definitions.identities(part, self.checkpoint.metadata, self.reference)
        settings = self.suite.settings_of(part)
        if isinstance(settings, AlpacaEvalSettings):
            return self._alpaca_eval(settings, *identities)
        return [self._task(settings, *identities)]

    def _alpaca_eval(self, settings: AlpacaEvalSettings, sample: Identity, *judges: Identity) -> list[PlannedJob]:
        """Return the jobs that sample outputs and judge them, one for each judge."""
        sampling = self._sample(settings, sample)
        names = [name for name, _ in self.definitions.judges(settings)]
        return [
            sampling,
            *(self._judge(settings, sampling, one, name) for one, name in zip(judges, names, strict=True)),
        ]

    def _judge(
        self, settings: AlpacaEvalSettings, sampling: PlannedJob, identity: Identity, choice: JudgeChoice
    ) -> PlannedJob:
        profile, named = CPU_PROFILE, choice
        server: tuple[str, ...] = ()
        if isinstance(choice, ServedJudge):
            profile = choice.profile or self.suite.profile
            named, server = self._served(choice, profile)
        folder = self._folder(identity)
        config = JudgeConfig(
            **self._common(identity),
            outputs=sampling.record,
            reference=settings.reference,
            judge=str(named),
            swap=settings.swap,
            output_dir=folder,
            answers=layout.answers_url(self.root),
            force_id=uuid4().hex if self.force else None,
        )
        record = filesystem.join(folder, layout.RECORD)
        judged = self._plan(identity, config, record, profile, judge=str(choice), label=identity.label)
        return _judged_outputs_of(sampling, judged.model_copy(update={"server": server}))

    def _served(self, judge: ServedJudge, profile: str) -> tuple[ServedJudge, tuple[str, ...]]:
        """Return a judge as its stage finds it, and the command that serves it. Raise BadInput, DataUnavailable."""
        weights = self.definitions.served_weights(judge)
        parts = self.cluster.gpu_profile(profile).parts
        weights.limits.check(parts, judge.max_model_len)
        model = str(Path(judge.model).absolute()) if Path(judge.model).exists() else judge.model
        located = judge.model_copy(update={"model": model, "revision": weights.revision or judge.revision})
        config = ServeConfig(
            **located.model_dump(include={"model", "revision", "dtype", "max_model_len"}),
            manifest=self.manifest and self._url_of(self.manifest),
            tensor_parallel_size=parts,
            gpu_memory_utilization=self.suite.gpu_memory_utilization,
            enforce_eager=self.suite.enforce_eager,
        )
        return located, ("serve", *argv_of(config))

    def _sample(self, settings: AlpacaEvalSettings, identity: Identity) -> PlannedJob:
        profile = profile_of(self.suite, self.checkpoint, settings.profile)
        metadata = self.checkpoint.metadata
        self.weights.limits.check(self.cluster.gpu_profile(profile).parts, settings.sampling.max_model_len)
        sampling = sampling_of(settings.sampling, metadata)
        self._check_template(sampling)
        outputs = filesystem.join(self._folder(identity), "outputs.json")
        config = SampleConfig(
            **dict(sampling),
            **self._common(identity),
            **self._engine(profile),
            prompts=settings.prompts,
            chat_template=metadata.chat_template and self._on_disk(metadata.chat_template),
            output=outputs,
        )
        return self._plan(identity, config, layout.record_beside(outputs), profile)

    def _check_template(self, settings: ChatSettings) -> None:
        check_template(settings, self.checkpoint, Path(self._on_disk(self.checkpoint.location)))

    def _task(self, settings: TaskSettings, identity: Identity) -> PlannedJob:
        """Return the job of one lm_eval task."""
        task = str(identity.task)
        profile = profile_of(self.suite, self.checkpoint, settings.profile)
        harness = harness_of(settings, self.checkpoint.metadata)
        if harness.apply_chat_template:
            self._check_template(harness)
        check_limits(harness, self.weights.limits, self.cluster.gpu_profile(profile).parts)
        metadata = self.checkpoint.metadata
        chat_template, stop = (metadata.chat_template, metadata.stop) if settings.apply_chat_template else (None, ())
        chat_template = chat_template and self._on_disk(chat_template)
        folder = self._folder(identity)
        outbox = self._outbox(task) if settings.confirm_unsafe_code and self.cluster.kubernetes else None
        config = HarnessConfig(
            **dict(harness),
            **self._common(identity),
            **self._engine(profile),
            task=task,
            output_dir=folder,
            include_path=self.suite.include_path,
            chat_template=chat_template,
            stop=stop,
            answers_only=settings.confirm_unsafe_code,
            copy_answers_to=f"file://{outbox.mount_path}" if outbox else None,
        )
        record = filesystem.join(folder, layout.RECORD)
        planned = self._plan(identity, config, record, profile, metric=settings.metric)
        return self._halved(planned, outbox) if settings.confirm_unsafe_code else planned

    def _halved(self, planned: PlannedJob, outbox: Volume | None) -> PlannedJob:
        """Return the job of a task that executes a model's code, with its halves.

        The second one has no GPU, no network and no secrets. On a cluster it gets the answers through the outbox.
        If they are in the store already, a pod without a GPU copies them there.
        """
        folder = planned.record.removesuffix(f"/{layout.RECORD}")
        tail = folder.removeprefix(f"{self.root.rstrip('/')}/runs/")
        answers = f"answers/{tail}" if outbox else None
        generate: StageJob | None = _as_stage_job(planned, answers=answers)
        why = planned.why
        if not self.force and readable_record(filesystem.join(folder, layout.GENERATED))[0]:
            why += "" if planned.done else "; its answers exist"
            generate = _as_stage_job(planned, answers=answers, profile=CPU_PROFILE, gpus=0) if outbox else None
        config = ScoreConfig(
            **self._common(planned),
            answers=f"file://{ANSWERS}" if outbox else folder,
            output_dir=f"file://{outbox.mount_path}" if outbox else folder,
            include_path=self.suite.include_path,
        )
        score = _as_stage_job(
            planned,
            argv=("score", *config.argv()),
            profile=CPU_PROFILE,
            gpus=0,
            outbox=f"runs/{tail}" if outbox else None,
            answers=answers,
            reads=self._reads(str(planned.task)) if outbox else (),
            unless=planned.record if outbox and not self.force else None,
        )
        return planned.model_copy(update={"why": why, "generate": generate, "score": score})

    def _reads(self, task: str) -> tuple[str, ...]:
        """Return what the scoring of a task reads in a pod: its pinned data and scripts, and its own files."""
        found: list[str] = []
        if self.manifest and self.cluster.cache:
            cache = self.cluster.cache.mount_path
            found.append(self._url_of(self.manifest))
            found += [filesystem.join(cache, item.path) for item in self.manifest.needs(task)]
        if path := self.suite.include_path:
            found += [path, *map(str, outside(Path(path)))]
        return tuple(dict.fromkeys(found))

    def _outbox(self, task: str) -> Volume:
        if self.cluster.outbox is None:
            raise BadInput(
                f"{task} executes code that the model writes, but the cluster file has no volume {OUTBOX} for the "
                f"results of a pod without network. Add kubernetes.volumes.{OUTBOX}, or deselect {task}"
            )
        return self.cluster.outbox

    def _engine(self, profile: str) -> dict[str, Any]:
        location = self.checkpoint.location
        return {
            "model": self._on_disk(location),
            "location": location if self.copy else None,
            "known": carried(self.weights.folders, self.copy),
            "root": self.checkpoint.root,
            "revision": self._revision(),
            "tensor_parallel_size": self.cluster.gpu_profile(profile).parts,
            "engines": self.cluster.gpu_profile(profile).copies,
            "gpu_memory_utilization": self.suite.gpu_memory_utilization,
            "max_num_batched_tokens": self.suite.max_num_batched_tokens,
            "enforce_eager": self.suite.enforce_eager,
        }

    def _on_disk(self, location: str) -> str:
        """Return the path of the cached copy of what is in the checkpoint's folder, if that is in object storage."""
        rest = location.removeprefix(self.checkpoint.location)
        if not self.copy or not (location == self.checkpoint.location or (rest != location and rest.startswith("/"))):
            return location
        return cached_copy(self.copy, self.cluster.cache.mount_path if self.cluster.cache else None) + rest

    def _revision(self) -> str | None:
        """Return a revision that gives the planned commit: the branch that the manifest pins, or the commit itself."""
        if self.manifest:
            return self.checkpoint.revision
        return None if self.weights.adapter else self.weights.revision

    def _common(self, identity: Identity | PlannedJob) -> dict[str, Any]:
        return {
            "name": self.checkpoint.name,
            "suite": self.suite.name,
            "expect": identity.fingerprint,
            "force": self.force,
            "manifest": self.manifest and self._url_of(self.manifest),
        }

    def _url_of(self, manifest: Manifest) -> str:
        """Return where the stages find this manifest, even if another fetch replaces the one in the store.

        They read it from the cache, because pods that execute model-written code cannot reach the store.
        """
        if self.cluster.cache:
            return filesystem.join(self.cluster.cache.mount_path, cached_path(manifest))
        cached = cache_root() / cached_path(manifest)
        return str(cached) if cached.is_file() else layout.manifest_url(self.root, self.suite.name)

    def _folder(self, identity: Identity) -> str:
        return layout.stage_folder(self.root, self.checkpoint.name, identity.stage, identity.task, identity.fingerprint)

    def _plan(
        self, identity: Identity, config: StageConfig, record: str, profile: str, **facts: str | None
    ) -> PlannedJob:
        done, why = self._state(identity, record)
        gpu_profile = None if profile == CPU_PROFILE else self.cluster.gpu_profile(profile)
        return PlannedJob(
            stage=identity.stage,
            task=identity.task,
            image=IMAGES[identity.stage],
            argv=(identity.stage, *config.argv()),
            profile=profile,
            gpus=gpu_profile.gpus if gpu_profile else 0,
            pool=self.cluster.pools.of(gpu_profile.gpus) if gpu_profile else None,
            tensor_parallel_size=gpu_profile.parts if gpu_profile else 1,
            manifest=config.manifest,
            fingerprint=identity.fingerprint,
            identity=identity,
            record=record,
            done=done,
            why=why,
            **facts,
        )

    def _state(self, identity: Identity, record: str) -> tuple[bool, str]:
        if self.force:
            return False, "forced"
        found, damage = readable_record(record)
        if found:
            return True, f"finished {found.provenance.ended:%Y-%m-%d %H:%M} UTC"
        if damage:
            return False, f"damaged record: {damage}"
        failure, damage = readable(layout.failure_beside(record), Failure)
        if damage:
            return False, f"failed before: {damage}"
        if failure:
            return False, f"failed before: {failure.error}: {failure.message}"
        return False, self._difference(identity)

    def _difference(self, identity: Identity) -> str:
        """Return what has changed since the newest record of the same stage and task."""
        found = newest_record(self.root, self.checkpoint.name, identity.stage, identity.task)
        if found is None:
            return "never run"
        _, newest = found
        return f"changed since {newest.provenance.ended:%Y-%m-%d}: {', '.join(changes(newest, identity))}"


def _as_stage_job(planned: PlannedJob, **changes: Any) -> StageJob:
    return StageJob(**planned.model_dump(include=set(StageJob.model_fields)) | changes)


def _judged_outputs_of(sample: PlannedJob, judged: PlannedJob) -> PlannedJob:
    """Mark the judge job as not done if its record is for other outputs than those of ``sample``."""
    record = readable_record(judged.record)[0] if sample.done and judged.done else None
    sampled = readable_record(sample.record)[0] if record else None
    if not judged.done or (record and sampled and record.provenance.inputs["outputs_sha256"] in sampled.files.values()):
        return judged
    return judged.model_copy(update={"done": False, "why": "the outputs are sampled again"})
