"""### evaluate_checkpoint: one suite on one checkpoint

`prepare` checks what is asked for; `fetch` fetches and pins the data that is not pinned yet; `plan` says what is there
already; then `sample` and `judge` (AlpacaEval) beside one `harness` task for each lm_eval task; `summarize` writes the
suite's table whatever happened before it; `verdict` is red if anything is missing. Trigger it again after a failure:
what is finished is not run again.

#### Triage
* **prepare or plan failed**: bad input (the message names the remedy). Nothing was spent. Mend it and trigger again.
* **fetch failed**: often the hub is out of reach. What was pinned before is evaluated all the same: trigger it again
  for the rest.
* **verdict says that a part cannot be had**: mend the reason (a gated set needs `HF_TOKEN`) and trigger it again.
* **one harness task failed**: its cell is empty, the others stand. Its log ends with the reason; clear that task.
* **judge failed, JudgeRefused**: key, quota or model name at the endpoint. Clear `judge`: paid answers are kept.
* **Incomplete, StoreError**: retried by themselves. If they stay: the endpoint or the store is down.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from halos_eval.config.cluster import GPU_POOL, JUDGE_POOL
from halos_eval.orchestration import params
from halos_eval.orchestration.defaults import DEFAULT_ARGS
from halos_eval.orchestration.evaluate import check_complete, plan_evaluation, prepare_evaluation
from halos_eval.orchestration.operator import stage_operator

PART = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
PARAMS = {
    "checkpoint": Param(
        type="string",
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$",
        title="Checkpoint",
        description="Name of the experiment below the checkpoints' folder: EXPERIMENT stands for EXPERIMENT/FINAL.",
    ),
    "suite": params.suite(),
    "tasks": Param(
        [],
        type=["array", "null"],
        items={"type": "string", "pattern": PART},
        title="Only these",
        description="Parts of the suite, one a line: alpaca_eval or names of lm_eval tasks. Empty: all.",
    ),
    "judge": Param(
        None,
        type=["string", "null"],
        pattern=PART,
        examples=["gpt-4.1", "gpt-4.1-mini", "demo"],
        title="Judge",
        description="Another judge than the suite's.",
    ),
    "priority": params.priority("manual"),
    "force": Param(
        False,
        type="boolean",
        title="Run everything again",
        description="Also what has a finished record.",
    ),
}


@dag(
    schedule=None,
    is_paused_upon_creation=False,  # what somebody triggers is run; nothing is started by itself
    params=PARAMS,
    catchup=False,
    max_active_runs=512,  # GPUs and priorities decide what goes first, not the order of the runs
    tags=["evaluation"],
    doc_md=__doc__,
    default_args=DEFAULT_ARGS,
)
def evaluate_checkpoint() -> None:
    """Declare the tasks."""

    @task
    def prepare() -> dict[str, Any]:
        return prepare_evaluation(dict(get_current_context()["params"]))

    @task(trigger_rule="all_done_min_one_success")  # where fetch fails, what is pinned already is evaluated
    def plan() -> list[dict[str, Any]]:
        return plan_evaluation(dict(get_current_context()["params"]))

    @task
    def verdict(jobs: dict[str, str], unavailable: dict[str, str]) -> None:
        check_complete(jobs, unavailable)

    @task
    def sampling(job: dict[str, Any]) -> list[dict[str, Any]]:
        """Its own task, because a task is expanded over another's return value only."""
        return [job]

    operator = stage_operator()
    prepared = prepare()
    fetch = operator(
        task_id="fetch",
        job=prepared,
        max_active_tis_per_dag=1,  # the manifest is read, added to and rewritten whole
    )
    planned = plan()
    [prepared, fetch] >> planned
    # Mapped, although it is one job: what it takes from the pool is set when it is expanded, after the plan.
    sample = operator.partial(task_id="sample", pool=GPU_POOL).expand(job=sampling(planned["sample"]))
    harness = operator.partial(task_id="harness", pool=GPU_POOL, map_index_template="{{ task.job['task'] }}").expand(
        job=planned
    )
    judge = operator(task_id="judge", pool=JUDGE_POOL, job=planned["judge"])
    summarize = operator(
        task_id="summarize",
        job=planned["summarize"],
        max_active_tis_per_dag=1,  # the table is rewritten whole: two runs must not do it at the same time
    )
    sample >> judge
    # A teardown: it runs whatever failed before it, but not without a plan, and clearing a task clears it as well.
    [judge, harness] >> summarize.as_teardown(setups=planned) >> verdict(planned["jobs"], planned["unavailable"])


evaluate_checkpoint()
