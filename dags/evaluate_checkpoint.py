"""### evaluate_checkpoint: one suite on one checkpoint

`prepare` checks the params, and waits while another run evaluates the same suite on the same checkpoint. `fetch`
downloads and pins data that is not pinned yet, and copies a checkpoint from object storage. `plan` finds the jobs to
run. `sample` and one `judge` for each judge (AlpacaEval) run beside one `harness` task for each lm_eval task. If it
executes a model's code, it has two tasks, in the group `code`. Short stages share a pod, which loads the model once:
the pod belongs to a task `pack`, and the stages' own tasks wait for their results. `summarize` writes the suite's
table, even if tasks failed. `verdict` fails if a result is missing, or if the policy's gate blocks the checkpoint.
After a failure you can trigger the DAG again: finished work is not run again.

#### Triage
* **prepare or plan failed**: the input is wrong (the message names the remedy). Nothing was spent. Fix it and trigger
  the DAG again.
* **fetch failed**: often the hub is unavailable. Tasks whose data is pinned run anyway. Trigger the DAG again for the
  rest.
* **verdict reports unavailable data**: fix the reason (a gated dataset needs `HF_TOKEN`) and trigger the DAG again.
* **verdict reports that the checkpoint is worse**: the policy blocks such a checkpoint. `halos-eval compare` has the
  numbers and the documents. Nothing has to run again.
* **one harness task failed**: only its cell is empty; other results are unaffected. The last log line is the reason.
  Clear that task: if it shared a pod, it now runs in a pod of its own.
* **pack failed**: some of its stages failed, and their own tasks have the reasons. Clear these, not `pack`.
* **one judge failed**: only its columns are empty. Clear that task.
* **code.score failed**: it executes the answers that `code.harness` generated for `humaneval` and `mbpp`. Clear it; the
  answers are kept.
* **judge failed, JudgeRefused**: the endpoint rejects the key, the quota or the model name. Fix it and clear `judge`;
  paid answers are kept.
* **judge failed, CostLimit**: it stopped before it cost more than `limits.run` of the policy file. Raise that and
  trigger the DAG again; paid answers are kept.
* **judge is up_for_reschedule**: it waits for a batch of the vendor, and runs again by itself.
* **Incomplete, StoreError**: Airflow retries. If they persist, check the judge's endpoint or the store.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, get_current_context, task, task_group

from halos_eval.config.cluster import GPU_POOL, JUDGE_POOL
from halos_eval.config.judge import shipped_names
from halos_eval.config.suite import TASK_NAME
from halos_eval.orchestration import params
from halos_eval.orchestration.defaults import DEFAULT_ARGS
from halos_eval.orchestration.evaluate import check, plan_evaluation, write_to_mlflow
from halos_eval.orchestration.names import PACK
from halos_eval.orchestration.operator import stage_operator
from halos_eval.orchestration.turns import Prepare, end_turn
from halos_eval.storage.layout import ORIGINAL_PART

JUDGE = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
PARAMS = {
    "checkpoint": Param(
        type="string",
        pattern=f"^{ORIGINAL_PART.pattern}(/{ORIGINAL_PART.pattern}){{0,3}}$",
        title="Checkpoint",
        description="Name in the registry. In a folder of checkpoints, EXPERIMENT stands for EXPERIMENT/FINAL.",
    ),
    "suite": params.suite(),
    "tasks": Param(
        [],
        type=["array", "null"],
        items={"type": "string", "pattern": TASK_NAME},
        title="Only these",
        description="Parts of the suite, one per line: alpaca_eval or names of lm_eval tasks. Empty: all.",
    ),
    "judge": Param(
        None,
        type=["string", "null"],
        pattern=JUDGE,
        examples=shipped_names(),
        title="Judge",
        description="Judge to use instead of the suite's judges.",
    ),
    "profile": params.profile(),
    "priority": params.priority("manual"),
    "force": Param(
        False,
        type="boolean",
        title="Run everything again",
        description="Run finished jobs as well.",
    ),
}


@dag(
    schedule=None,
    is_paused_upon_creation=False,  # it runs only if somebody triggers it
    params=PARAMS,
    catchup=False,
    max_active_runs=512,  # pools and priorities limit the work, not the number of runs
    tags=["evaluation"],
    doc_md=__doc__,
    default_args=DEFAULT_ARGS,
)
def evaluate_checkpoint() -> None:
    """Declare the tasks."""

    @task(trigger_rule="all_done_min_one_success")  # if fetch fails, pinned data is evaluated anyway
    def plan(checkpoint: str) -> list[dict[str, Any]]:
        return plan_evaluation(dict(get_current_context()["params"]), checkpoint)

    @task
    def verdict(checkpoint: str, jobs: dict[str, str], unavailable: dict[str, str], gated: bool) -> None:
        suite = get_current_context()["params"]["suite"]
        end_turn(checkpoint, suite)
        try:
            write_to_mlflow(checkpoint, suite)
        finally:  # the reasons of missing results are there without MLflow, too
            check(jobs, unavailable, checkpoint if gated else None, suite)

    @task
    def sampling(job: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the job as a list. Airflow expands a mapped task only over another task's return value."""
        return [job]

    @task
    def judging(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the jobs of the judges, for the same reason."""
        return jobs

    @task
    def packing(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the jobs of the packs, for the same reason."""
        return jobs

    @task
    def coding(halves: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the halves of tasks that execute a model's code, for the same reason."""
        return halves

    operator = stage_operator()
    prepared = Prepare(task_id="prepare").output  # with the key "checkpoint", the name
    fetch = operator(
        task_id="fetch",
        job=prepared,
        max_active_tis_per_dag=1,  # each fetch rewrites the whole manifest
    )
    planned = plan(prepared["checkpoint"])
    [prepared, fetch] >> planned
    # Mapped, although it is one job: its pool slots are set when it is expanded, which is after the plan.
    # Stages that share a pod. Their own tasks, below, wait for their records and take no GPUs.
    packed = packing(planned["packs"])
    pack = operator.partial(task_id=PACK, pool=GPU_POOL, map_index_template="{{ task.job['task'] }}").expand(job=packed)
    sample = operator.partial(task_id="sample", pool=GPU_POOL).expand(job=sampling(planned["sample"]))
    harness = operator.partial(task_id="harness", pool=GPU_POOL, map_index_template="{{ task.job['task'] }}").expand(
        job=planned
    )
    # A judge that is served takes its GPUs from their pool instead.
    # Its entry in the suite is a mapping, which would be a bad name of a task instance.
    served, named = "task.job.get('label') or 'served'", "task.job.get('judge', '').split('/') | last"
    judge = operator.partial(
        task_id="judge",
        pool=JUDGE_POOL,
        map_index_template=f"{{{{ {served} if task.job.get('server') else {named} }}}}",
    ).expand(job=judging(planned["judges"]))

    @task_group(group_id="code")
    def code(generate: dict[str, Any], score: dict[str, Any]) -> None:
        """Generate the answers with a GPU, then execute them without one. A failed task stops no other one."""
        name = "{{ task.job.get('task', 'answers exist') }}"
        generated = operator(task_id="harness", job=generate, pool=GPU_POOL, map_index_template=name)
        generated >> operator(task_id="score", job=score, map_index_template=name)

    executed = code.expand_kwargs(coding(planned["code"]))
    summarize = operator(
        task_id="summarize",
        job=planned["summarize"],
        max_active_tis_per_dag=1,  # each run rewrites the whole table
    )
    sample >> judge
    # A teardown runs whatever failed before it, but not without its setup, which needs the plan. If you clear a task,
    # both are cleared as well: the plan itself must not be one, because a new plan omits the jobs that are done, and
    # Airflow would remove the instances behind them, with the one that you cleared.
    # Airflow would count the tasks before a teardown for the state of the run: a pack that failed would keep it red
    # after its stages were cleared. on_failure_fail_dagrun leaves the state to the verdict, which knows each result.
    (
        [judge, harness, executed, pack]
        >> summarize.as_teardown(setups=packed, on_failure_fail_dagrun=True)
        >> verdict(planned["checkpoint"], planned["jobs"], planned["unavailable"], planned["gated"])
    )


evaluate_checkpoint()
