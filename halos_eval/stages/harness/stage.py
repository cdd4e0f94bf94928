"""Run one lm-evaluation-harness task, and save all of its results.

This module writes results itself, because lm_eval's own tracker hides errors while saving. It also journals finished
requests itself, because lm_eval's cache stores generated text under keys that it never looks up.

A task that executes model-written code is run in two halves: the answers are generated here, and scored in another
process, which has no model (`halos_eval.stages.harness.score`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from halos_eval.checkpoints.known import Carried
from halos_eval.checkpoints.weights import Weights, check_fetched, inspect
from halos_eval.data.replay import replayed
from halos_eval.stages.engine import Engine
from halos_eval.stages.harness.answers import Tally
from halos_eval.stages.harness.chunks import Watch, in_chunks
from halos_eval.stages.harness.model import prompting_of, transformers_model, vllm_model
from halos_eval.stages.harness.options import HarnessConfig, ScoreConfig, check_limits, harness_identity
from halos_eval.stages.harness.replay import Keeper, metrics_not_loaded, stopped_before_scoring, write_answers
from halos_eval.stages.harness.results import NO_USAGE, scored
from halos_eval.stages.harness.score import deliver, score
from halos_eval.stages.harness.streamed import Streamed
from halos_eval.stages.harness.task_index import task_manager
from halos_eval.stages.harness.tasks import dataset_revisions, evaluate, include_paths, load_tasks
from halos_eval.stages.harness.thinking import Thoughts, separating
from halos_eval.stages.harness.warned import warnings_counted
from halos_eval.stages.identity import Job
from halos_eval.stages.on_disk import on_disk
from halos_eval.stages.options import StageConfig
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.run import Outcome, check_still_named, loading, reason_kept, run
from halos_eval.stages.vllm import EngineOptions, Load, load_engine
from halos_eval.storage import filesystem, layout
from halos_eval.storage.journal import Journal
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import Coverage, Record, Usage

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

Save = Callable[[], Outcome]
"""Writes files, and returns what is recorded of them."""


def harness(config: HarnessConfig, load: Load = load_engine) -> Record:
    """Run the stage; ``load`` returns the engine for the backend vllm.

    Raise BadInput, DataUnavailable, StoreError, EvaluationFailed.
    """
    if not (config.confirm_unsafe_code or config.answers_only):
        return _run(config, layout.RECORD, load)
    generated = _run(config, layout.GENERATED, load)
    if config.copy_answers_to:
        deliver(config.output_dir, config.copy_answers_to, generated)
    if config.answers_only:
        return generated
    common = {name: getattr(config, name) for name in StageConfig.model_fields}
    folders = {"answers": config.output_dir, "output_dir": config.output_dir, "include_path": config.include_path}
    return score(ScoreConfig(**common, **folders))


def _run(config: HarnessConfig, name: str, load: Load) -> Record:
    """Run the task, or only generate its answers, until the record of this ``name`` exists."""
    record = filesystem.join(config.output_dir, name)
    with ExitStack() as stack:
        with reason_kept(config, record):
            config = stack.enter_context(on_disk(config))
            manifest = config.load_manifest()
            weights = inspect(config.model, config.revision, manifest, Carried(config.known), config.root)
            check_limits(config, weights.limits, config.tensor_parallel_size)
            checkpoint = weights.reference(config.name, config.location or config.model)
            identity = harness_identity(
                config.task, config, config.include_path, config.chat_template, checkpoint, manifest, config.stop
            )
            job = identity.at(record)
        return run(job, config, lambda: _with_data(config, weights, job, manifest, load))


def _with_data(config: HarnessConfig, weights: Weights, job: Job, manifest: Manifest | None, load: Load) -> Outcome:
    began = time.monotonic()
    check_fetched(config.model, config.revision, manifest)
    with replayed(manifest, config.task):  # imports large libraries
        outcome = _work(config, weights, job, load, began)
    fetched = manifest.needs(config.task) if manifest else []
    more = {f"{item.kind}:{item.repo}": item.revision or item.digest for item in fetched if item.kind != "dataset"}
    return outcome.model_copy(update={"inputs": more | outcome.inputs})


def _work(config: HarnessConfig, weights: Weights, job: Job, load: Load, began: float) -> Outcome:
    generates = job.record.endswith(layout.GENERATED)
    manager = task_manager([config.task], include_paths(config.include_path))
    with metrics_not_loaded() if generates else nullcontext():
        tasks = load_tasks(config, manager)
    with loading(weights):
        engine = load(weights, EngineOptions.of(config)) if config.backend == "vllm" else None
        model = vllm_model(engine) if engine else transformers_model(config, weights)
    prompting = prompting_of(config, model)
    parts = filesystem.join(config.output_dir, "parts")
    loaded = time.monotonic()
    with Journal(job.journal(parts, config.force)) as journal:
        tally = _journaled(config, model, engine, journal, prompting)
        thoughts = separating(model, prompting)
        save_all = (_generate if generates else _evaluate)(config, model, manager, tasks, thoughts)
    check_still_named(weights, journal)
    outcome = save_all()
    usage = Usage(
        load_seconds=loaded - began,
        work_seconds=time.monotonic() - loaded,
        resumed=tally.requests["resumed"] / max(1, tally.requests.total()),
    )
    inputs = dataset_revisions(tasks) | prompting.described() | outcome.inputs
    details = {**tally.details, **thoughts.details, **outcome.details}
    return outcome.model_copy(update={"usage": usage, "inputs": inputs, "details": details, "parts": parts})


def _journaled(
    config: HarnessConfig, model: LM, engine: Engine | None, journal: Journal, prompting: Prompting
) -> Tally:
    """Let the model journal its answers. Return their counts, which are updated as requests are answered."""
    if engine is None:
        journal.seconds = 0  # a chunk takes long
        return in_chunks(model, journal, config.save_every, prompting, Watch(model, prompting))
    streamed = Streamed(model, engine, journal, prompting, config.seed)
    if isinstance(config.batch_size, int) and config.batch_size > 0:
        streamed.at_once = config.batch_size
    return streamed.tally


def _evaluate(config: HarnessConfig, model: LM, manager: TaskManager, tasks: list[Any], thoughts: Thoughts) -> Save:
    """Let lm_eval ask the model and score its answers."""
    thoughts.leave_out(tasks)
    with warnings_counted() as warned:
        results = evaluate(config, model, manager, tasks)
    return lambda: scored(config.output_dir, results, warned, thoughts)


def _generate(config: HarnessConfig, model: LM, manager: TaskManager, tasks: list[Any], thoughts: Thoughts) -> Save:
    """Let lm_eval ask the model, and keep its answers."""
    keeper = Keeper(model)
    with stopped_before_scoring(tasks):
        evaluate(config, model, manager, tasks)

    def save_answers() -> Outcome:
        answers = keeper.answers.model_copy(update={"thoughts": thoughts if thoughts.documents else None})
        count = sum(map(len, answers.answers.values()))
        files = write_answers(config.output_dir, answers)
        return Outcome(coverage=Coverage(attempted=count, scored=count), usage=NO_USAGE, files=files)

    return save_answers
