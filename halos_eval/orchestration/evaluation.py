"""The tasks of ``evaluate_checkpoint`` that run in Airflow itself: they read plans and records, never outputs."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowFailException

from halos_eval.annotator import check_shipped
from halos_eval.costs import excess, read_history
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.evaluation_policy import load_policy
from halos_eval.plan import Plan, StageJob, make_plan, save_plan, summary_job
from halos_eval.record import read_record
from halos_eval.registry.place import open_registry
from halos_eval.report.table import why_missing
from halos_eval.settings import Settings
from halos_eval.suite import Suite, load_suite

log = logging.getLogger(__name__)


def plan_evaluation(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Plan, keep the plan in the store, and hand out its jobs.

    Gives the harness jobs to run; XComs ``sample`` and ``judge`` have those, empty where there is nothing to do (an
    XCom cannot be None); ``jobs`` has all titles and records, ``summarize`` the job that writes the table, ``cost``
    what it all will cost.
    """
    settings = Settings()
    try:
        checkpoint = open_registry(settings.checkpoints, settings.steps).get(params["checkpoint"])
        suite = load_suite(params["suite"])
        kept = suite.keep(params["tasks"] or [])
        if params["judge"] is not None:
            check_shipped(params["judge"])
        plan = make_plan(kept, checkpoint, settings.store, force=params["force"], judge=params["judge"])
        _check_cost(plan, suite, settings.store)
        save_plan(plan, suite, settings.store)
    except HalosEvalError as error:
        if error.retryable:
            raise
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error
    to_run = [job for job in plan.jobs if not job.done]
    exchange = get_current_context()["ti"]
    for stage in ("sample", "judge"):
        exchange.xcom_push(stage, next((_job(job) for job in to_run if job.stage == stage), {}))
    exchange.xcom_push("jobs", {job.title: job.record for job in plan.jobs})
    exchange.xcom_push("summarize", _job(summary_job(suite.name, settings.store)))
    return [_job(job) for job in to_run if job.stage == "harness"]


def _check_cost(plan: Plan, suite: Suite, root: str) -> None:
    """Show what ``plan`` will cost, in the log and as the XCom ``cost``. Raises BadInput if that is over the limit."""
    cost = read_history(suite, root).of_plan(plan)
    log.info("what is to be run will take %s", cost)
    get_current_context()["ti"].xcom_push("cost", cost.model_dump(mode="json"))
    if over := excess(cost, load_policy().limits.run):
        raise BadInput(over)


def _job(job: StageJob) -> dict[str, Any]:
    return job.model_dump(include=set(StageJob.model_fields), mode="json")


def check_complete(jobs: dict[str, str]) -> None:
    """Fail unless every planned job has its record, naming those that have not, each with its reason."""
    missing = {}
    for title, url in jobs.items():
        record = read_record(url)
        if record is None:
            missing[title] = why_missing(url)
        elif record.stage == "harness" and record.missing:
            missing[title] = "; ".join(f"{metric}: {reason}" for metric, reason in record.missing.items())
    if missing:
        raise AirflowFailException("missing: " + "; ".join(f"{title} ({why})" for title, why in missing.items()))
