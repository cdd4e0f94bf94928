"""The tasks of ``evaluate_checkpoint`` that run in Airflow itself. They read plans and records, never outputs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowFailException

from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.checkpoints.weights import in_storage
from halos_eval.config.cluster import load_cluster
from halos_eval.config.judge import check_shipped, load_judge
from halos_eval.config.policy import load_policy
from halos_eval.config.settings import Settings
from halos_eval.config.suite import Suite, load_suite
from halos_eval.errors import BadInput, DataUnavailable, HalosEvalError
from halos_eval.exporters.mlflow import wanted as mlflow_wanted
from halos_eval.exporters.mlflow import write_results
from halos_eval.planning.costs import Cost, History, excess, read_history
from halos_eval.planning.jobs import Packed, PlannedJob, StageJob, fetch_job, summary_job
from halos_eval.planning.packing import Packing
from halos_eval.planning.packs import packing_of_jobs, packs_of
from halos_eval.planning.plan import make_plan, save_plan, suite_manifest
from halos_eval.planning.progress import some_stage_loads
from halos_eval.reports.comparison import read_gate
from halos_eval.reports.results import why_missing, why_unavailable
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import readable_record

log = logging.getLogger(__name__)


def prepare_evaluation(params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Check the params without reading weights.

    Return the checkpoint's name in the store, and the job that fetches unpinned data; {} if all is pinned.
    """
    with _failing_at_once():
        mlflow_wanted()
        root = Settings().store
        checkpoint, suite, tasks = _requested(params)
        cluster, force = load_cluster(), params["force"]
        # Only a checkpoint in object storage is fetched again and again, so the results matter only then.
        loaded = force or not in_storage(checkpoint.location)
        loaded = loaded or some_stage_loads(root, checkpoint, cluster, suite.name, tasks)
        job = fetch_job(suite, checkpoint, root, cluster, tasks, force=force, loaded=loaded)
    return checkpoint.name, _job(job) if job else {}


def requested_name(params: dict[str, Any]) -> str:
    """Return the name under which the store has the requested checkpoint; people may use another one."""
    with _failing_at_once():
        checkpoint, _, _ = _requested(params)
    return checkpoint.name


def plan_evaluation(params: dict[str, Any], prepared: str) -> list[dict[str, Any]]:
    """Make the plan, save it in the store, and return the harness jobs to run that execute no model's code.

    ``prepared`` is the name of the checkpoint that this run has fetched and has its turn for.

    XComs have the rest:

    - ``sample``: the job to run; {} if there is none (an XCom cannot be None)
    - ``judges``: the jobs to run, one for each judge; [{}] if there is none
    - ``code``: for each task that executes a model's code, its halves ``generate`` ({} if it is done) and ``score``
    - ``packs``: the jobs that run several of these in one pod; the others then wait for their records
    - ``checkpoint``: the checkpoint's name in the store
    - ``jobs``: titles and record URLs of all jobs
    - ``unavailable``: the parts whose data or chat template is unavailable, with the reasons
    - ``summarize``: the job that writes the table
    - ``gated``: whether the policy compares the checkpoint with another one
    - ``cost``: the estimate
    """
    with _failing_at_once():
        root = Settings().store
        checkpoint, suite, tasks = _requested(params)
        if checkpoint.name != prepared:  # an alias has moved to another version meanwhile
            checkpoint, suite, tasks = _requested(params | {"checkpoint": prepared})
        cluster = load_cluster()
        manifest = suite_manifest(suite.name, root, cluster)
        if manifest is None and cluster.can_fetch:
            raise DataUnavailable(
                f"suite {suite.name} has no manifest; the task `fetch` writes it. Fix the error in the log of `fetch` "
                "and clear that task"
            )
        plan = make_plan(
            suite.keep(tasks),
            checkpoint,
            root,
            cluster,
            force=params["force"],
            judge=params["judge"],
            manifest=manifest,
        )
        history = read_history(suite, root, plan)
        packing = packing_of_jobs(suite, checkpoint, plan.jobs, history.expected)
        _check_cost(history.of_plan(plan, packing))
        _log_packing(packing)
        save_plan(plan, suite, root, manifest)
    to_run = [job for job in plan.jobs if not job.done]
    packs = packs_of(to_run, packing, datetime.now(UTC), params["force"])
    packed = packs.packed
    exchange = get_current_context()["ti"]
    exchange.xcom_push("sample", next((_job(job, packed) for job in to_run if job.stage == "sample"), {}))
    judges = _by_policy([job for job in to_run if job.stage == "judge"], params["priority"], history)
    exchange.xcom_push("judges", [_job(job) for job in judges] or [{}])
    exchange.xcom_push("checkpoint", plan.checkpoint.name)
    exchange.xcom_push("jobs", {job.title: job.record for job in plan.jobs})
    exchange.xcom_push("unavailable", plan.unavailable)
    policy = load_policy()
    gate = policy.gate_for(suite.name, checkpoint.name, plan.tags)
    # The outcome of an earlier evaluation says nothing of this one.
    filesystem.delete_file(layout.gate_url(root, suite.name, checkpoint.name))
    exchange.xcom_push("gated", gate is not None)
    summary = summary_job(suite.name, checkpoint.name, root, cluster, gate, policy.margin)
    exchange.xcom_push("summarize", _job(summary))
    halves = [
        {"generate": _job(job.generate, packed) if job.generate else {}, "score": _job(job.score)}
        for job in to_run
        if job.score
    ]
    exchange.xcom_push("code", halves)
    exchange.xcom_push("packs", [_job(job) for job in packs.jobs])
    return [_job(job, packed) for job in to_run if job.stage == "harness" and not job.score]


def _requested(params: dict[str, Any]) -> tuple[Checkpoint, Suite, list[str]]:
    """Return the checkpoint, the whole suite, and the selected parts of it; an empty list stands for all.

    A requested profile replaces that of the checkpoint's metadata, which overrides the suite's.
    """
    settings = Settings()
    checkpoint = open_registry(settings.checkpoints, settings.steps).get(params["checkpoint"])
    if params["profile"] is not None:
        load_cluster().gpu_profile(params["profile"])
        metadata = checkpoint.metadata.model_copy(update={"profile": params["profile"]})
        checkpoint = checkpoint.model_copy(update={"metadata": metadata})
    suite = load_suite(params["suite"])
    tasks = params["tasks"] or []
    suite.keep(tasks)
    if params["judge"] is not None:
        check_shipped(params["judge"])
    return checkpoint, suite, tasks


@contextmanager
def _failing_at_once() -> Iterator[None]:
    """Raise errors that a retry cannot fix as AirflowFailException, which Airflow does not retry."""
    try:
        yield
    except HalosEvalError as error:
        if error.retryable:
            raise
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error


def _check_cost(cost: Cost) -> None:
    """Show the estimated cost in the log and as XCom ``cost``. Raise BadInput if it is over the limit."""
    log.info("estimated cost of this run: %s", cost)
    get_current_context()["ti"].xcom_push("cost", cost.model_dump(mode="json"))
    if over := excess(cost, load_policy().limits.run):
        raise BadInput(over)


def _log_packing(packing: Packing) -> None:
    for title, why in packing.why.items():
        log.info("%s: %s", title, why)


def _by_policy(jobs: list[PlannedJob], priority: str, history: History) -> list[PlannedJob]:
    """Return the judges' jobs, which share the run's limit, and use batches if the policy wants them.

    A judge without prices has nothing to compare with the limit. Nor does it use batches: it may be the lab's own.
    """
    policy = load_policy()
    prices = [None if job.judge is None or job.server else load_judge(job.judge) for job in jobs]
    priced = [job for job, judge in zip(jobs, prices, strict=True) if judge and judge.price]
    most = policy.limits.run.judge_dollars
    shares = iter(history.shares(priced, most)) if most is not None else repeat(None)
    found = []
    for job, judge in zip(jobs, prices, strict=True):
        options: list[str] = []
        if judge and judge.price:
            if priority in policy.batch and judge.price.less_in_batch and not judge.client.azure_endpoint:
                options.append("--batch")
            if (share := next(shares)) is not None:
                options.append(f"--max-cost={share}")
        found.append(job.model_copy(update={"argv": job.argv_with(*options)}))
    return found


def _job(job: StageJob, packed: Mapping[str, Packed] | None = None) -> dict[str, Any]:
    """Return the fields of a job, with the pack that runs it if there is one among ``packed``."""
    fields = job.model_dump(include=set(StageJob.model_fields))
    found = StageJob.model_validate(fields)
    return found.model_copy(update={"packed": (packed or {}).get(job.title)}).model_dump(mode="json")


def write_to_mlflow(checkpoint: str, suite: str) -> None:
    """Write the results to the registry, if the policy file wants it."""
    with _failing_at_once():
        write_results(checkpoint, load_suite(suite).name)


def check(jobs: dict[str, str], unavailable: dict[str, str], gated: str | None = None, suite: str = "") -> None:
    """Raise AirflowFailException if a result is missing, or if the policy's gate blocks; name each reason.

    ``gated`` is the checkpoint's name if the policy compares it with another one.
    """
    problems = _missing(jobs, unavailable)
    if gated is not None:
        problems += _gate(gated, suite)
    if problems:
        raise AirflowFailException("; ".join(problems))


def _gate(checkpoint: str, suite: str) -> list[str]:
    """Return why the gate blocks, from the JSON that ``summarize`` wrote; log its outcome."""
    outcome = read_gate(Settings().store, suite, checkpoint)
    if outcome is None:
        return ["the gate of the policy has no outcome: the log of the task `summarize` has the reason"]
    log.info("gate (%s): %s", outcome.rule, outcome)
    for task in outcome.tasks:
        log.info("gate: %s", task.in_words)
    if not outcome.blocked:
        return []
    flips = ", ".join(f"{flip.task} {flip.id}" for flip in outcome.flips)
    return [f"worse than {outcome.baseline} in {', '.join(outcome.blocked)}, which blocks (see the items {flips})"]


def _missing(jobs: dict[str, str], unavailable: dict[str, str]) -> list[str]:
    """Return the parts without a job or a record, with the reasons."""
    missing = {part: why_unavailable(reason) for part, reason in unavailable.items()}
    for title, url in jobs.items():
        record, damage = readable_record(url)
        if record is None:
            missing[title] = damage or why_missing(url)
        elif record.stage == "harness" and record.missing:
            missing[title] = "; ".join(f"{metric}: {reason}" for metric, reason in record.missing.items())
    return ["missing: " + "; ".join(f"{title} ({why})" for title, why in missing.items())] if missing else []
