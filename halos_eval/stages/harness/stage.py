"""Run one lm-evaluation-harness task, and save all of its results.

This module writes results itself, because lm_eval's own tracker hides errors while saving. It also journals finished
requests itself, because lm_eval's cache stores generated text under keys that it never looks up.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from halos_eval.checkpoints.known import Carried
from halos_eval.checkpoints.weights import Weights, check_fetched, inspect
from halos_eval.data.replay import replayed
from halos_eval.stages.harness import sandbox
from halos_eval.stages.harness.answers import Watch, journaled
from halos_eval.stages.harness.model import load_model, prompting_of
from halos_eval.stages.harness.options import HarnessConfig, harness_identity
from halos_eval.stages.harness.results import contents_of, coverage_of, examples_of, scores_of
from halos_eval.stages.harness.task_index import task_manager
from halos_eval.stages.harness.tasks import dataset_revisions, evaluate, include_paths, load_tasks
from halos_eval.stages.harness.warned import warnings_counted
from halos_eval.stages.identity import Job
from halos_eval.stages.on_disk import on_disk
from halos_eval.stages.run import Outcome, check_still_named, loading, reason_kept, run
from halos_eval.storage import filesystem, layout, result_files
from halos_eval.storage.journal import Journal
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import Record, Usage


def harness(config: HarnessConfig) -> Record:
    """Run the stage. Raise BadInput, DataUnavailable, StoreError, EvaluationFailed."""
    record = filesystem.join(config.output_dir, layout.RECORD)
    with ExitStack() as stack:
        with reason_kept(config, record):
            config = stack.enter_context(on_disk(config))
            manifest = config.load_manifest()
            weights = inspect(config.model, config.revision, manifest, Carried(config.known))
            gpus = config.tensor_parallel_size if config.backend == "vllm" else 1
            weights.limits.check(gpus, config.max_model_len)
            checkpoint = weights.reference(config.name, config.location or config.model)
            identity = harness_identity(
                config.task, config, config.include_path, config.chat_template, checkpoint, manifest, config.stop
            )
            job = identity.at(record)
        # Code that a model wrote could have left a record in the outbox, in an earlier try of this task.
        trusted = not (config.confirm_unsafe_code and config.expect)
        return run(job, config, lambda: _with_data(config, weights, job, manifest), trusted=trusted)


def _with_data(config: HarnessConfig, weights: Weights, job: Job, manifest: Manifest | None) -> Outcome:
    check_fetched(config.model, config.revision, manifest)
    with replayed(manifest):
        outcome = _work(config, weights, job)
    fetched = manifest.needs(config.task) if manifest else []
    more = {f"{item.kind}:{item.repo}": item.revision or item.digest for item in fetched if item.kind != "dataset"}
    return outcome.model_copy(update={"inputs": more | outcome.inputs})


def _work(config: HarnessConfig, weights: Weights, job: Job) -> Outcome:
    began = time.monotonic()
    manager = task_manager([config.task], include_paths(config.include_path))
    tasks = load_tasks(config, manager)
    with loading(weights):
        model = load_model(config, weights)
    prompting = prompting_of(config, model)
    watch = Watch(model, config.backend, prompting)
    if config.confirm_unsafe_code:
        sandbox.close_network_in_children()  # after the start of the model's own processes, which need the network
    parts = filesystem.join(config.output_dir, "parts")
    loaded = time.monotonic()
    with Journal(job.journal(parts, config.force), seconds=0) as journal:
        tally = journaled(model, journal, config.save_every, prompting, watch)
        with warnings_counted() as warned:
            results = evaluate(config, model, manager, tasks)
    check_still_named(weights, journal)
    files = result_files.write(config.output_dir, contents_of(results))
    scores, missing = scores_of(results)
    return Outcome(
        scores=tuple(scores),
        missing=missing,
        coverage=coverage_of(results),
        details={**tally.details, **warned},
        usage=Usage(
            load_seconds=loaded - began,
            work_seconds=time.monotonic() - loaded,
            resumed=tally.requests["resumed"] / max(1, tally.requests.total()),
        ),
        files=files,
        inputs=dataset_revisions(tasks) | prompting.described() | examples_of(results),
        parts=parts,
    )
