"""``make demo``: Airflow runs the DAG on two small checkpoints on this machine. Then the table is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

from rich.console import Console

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.demo.checkpoints import INTACT, ROUNDED
from halos_eval.demo.installation import (
    CHECKPOINTS,
    ENVIRONMENTS,
    LOGS,
    STORE,
    SUITE,
    airflow,
    airflow_environment,
    make_checkpoints,
    make_suite,
    migrate,
)
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.planning.definition import Definitions, read_definition
from halos_eval.planning.jobs import fetch_job
from halos_eval.planning.plan import Plan, make_plan, read_plan, save_plan, suite_manifest
from halos_eval.processes import NO_REPORTS, failure, run
from halos_eval.reports.pages import write as pages
from halos_eval.reports.pages.links import INDEX
from halos_eval.reports.results import Row
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.reports.table import csv_of, read_rows
from halos_eval.reports.terminal import Summary
from halos_eval.storage import filesystem, layout

# Lines of Airflow's log that are shown as progress. The log file has all of them.
PROGRESS = re.compile(
    r"\[DAG TEST\] starting task_id=(?P<task>\w+)"
    r"|halos_eval[.\w]*: (?P<news>.*?) \[airflow"
    r"|(?P<error>halos-eval: .*?) \[airflow"
)
FINISHED = re.compile(r"DagRun Finished.*\bstate=(\w+)")
console = Console(highlight=False)


def main() -> int:
    """Run the demo and return its exit code."""
    began = time.monotonic()
    report = layout.report_url(STORE, SUITE)
    try:
        make_checkpoints()
        failed = _evaluate(_open_plans())
        rows = _rows(report, failed)
    except HalosEvalError as error:
        console.print(f"{type(error).__name__}: {error}", markup=False, style="red", soft_wrap=True)
        return error.exit_code
    path = report.removeprefix("file://")
    console.print(Summary(rows, path))
    _compare()
    console.print("The judge has 135 million parameters, so the win rates are meaningless.")
    console.print(f"{time.monotonic() - began:.0f} s; logs in {LOGS}; `make up` shows the runs in Airflow's UI")
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
    print(f"report: {path.rpartition('/')[0]}/{INDEX}")
    print(f"summary: {path}")
    return 1 if failed else 0


def _compare() -> None:
    """Print the comparison of the two checkpoints, and keep it in the store, by the judge's environment.

    Its exit code is the verdict, and no failure of the demo: it says what is missing.
    """
    command = ENVIRONMENTS / "judge" / "bin" / "halos-eval"
    if command.exists():
        words = ["compare", ROUNDED, INTACT, f"--suite={SUITE}", f"--store={STORE}", "--save"]
        sys.stdout.flush()  # the table comes first, also in a file
        subprocess.run([command, *words], check=False)  # noqa: S603


def _open_plans() -> list[Plan]:
    """Return the plans with jobs to run. Update the plans of finished checkpoints in the store."""
    suite, registry = load_suite(str(make_suite())), FolderRegistry(str(CHECKPOINTS))
    cluster = load_cluster()
    manifest = suite_manifest(SUITE, STORE, cluster)
    found = []
    for name in (INTACT, ROUNDED):
        checkpoint = registry.get(name)
        plan = make_plan(suite, checkpoint, STORE, cluster, manifest=manifest)
        if fetch_job(suite, checkpoint, STORE, cluster) or not all(job.done for job in plan.jobs):
            found.append(plan)
            continue
        console.print(f"{name}: all results exist")
        kept = read_plan(layout.plan_url(STORE, SUITE, name))
        definition = Definitions(suite, manifest, root=STORE).document
        if kept is None or _contents(kept) != _contents(plan) or read_definition(STORE, SUITE) != definition:
            save_plan(plan, suite, STORE, manifest)
    return found


def _contents(plan: Plan) -> tuple[str, set[str]]:
    """Return the values of a plan that determine the table."""
    return plan.checkpoint.digest, {job.record for job in plan.jobs}


def _rows(report: str, failed: list[str]) -> list[Row]:
    """Return the rows of the summary table. Write ``report`` if it is missing or not up to date.

    Raises EvaluationFailed with the reason of the first of ``failed`` if no run of them got as far as a plan.
    """
    try:
        rows = read_rows(STORE, SUITE)
    except BadInput:
        if failed:
            raise failure(f"Airflow's run of {failed[0]}", 1, LOGS / f"{failed[0]}.log") from None
        raise
    page = filesystem.join(layout.report_folder(STORE, SUITE), INDEX)
    if filesystem.exists(page) and filesystem.exists(report) and filesystem.read_bytes(report) == csv_of(rows):
        return rows
    if pages.installed():
        return summarize(SummarizeConfig(root=STORE, suite=SUITE, output=report))
    # Airflow's environment lacks the libraries of the pages, and the judge's has them.
    program = str(ENVIRONMENTS / "judge" / "bin" / "halos-eval")
    words = [program, "summarize", STORE, f"--suite={SUITE}", f"--output={report}"]
    run("writing the report", words, LOGS / "summarize.log", {**os.environ, **NO_REPORTS})
    return rows


def _evaluate(plans: list[Plan]) -> list[str]:
    """Run the DAG for each plan, and return the names of the checkpoints whose run failed."""
    if not plans:
        return []
    environment = airflow_environment()
    with console.status("making Airflow's database"):
        migrate(environment)
    return [plan.checkpoint.name for plan in plans if not _run_dag(plan.checkpoint.name, environment)]


def _run_dag(checkpoint: str, environment: dict[str, str]) -> bool:
    """Run ``evaluate_checkpoint``, print its progress, and return whether it succeeded.

    Raise EvaluationFailed if Airflow itself failed, because the table does not show that.
    """
    conf = json.dumps({"checkpoint": checkpoint, "suite": SUITE})
    log = LOGS / f"{checkpoint}.log"
    state = ""
    command = airflow("dags", "test", "evaluate_checkpoint", "--conf", conf)
    with (
        log.open("w") as file,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,  # noqa: S603
    ):
        for line in _shown(process, checkpoint):
            file.write(line)
            state = found[1] if (found := FINISHED.search(line)) else state
    if not state:
        raise failure(f"Airflow's run of {checkpoint}", process.returncode, log)
    return process.returncode == 0 and state == "success"


def _shown(process: subprocess.Popen[bytes], checkpoint: str) -> Iterator[str]:
    """Yield the lines of Airflow's log, and print those that show progress."""
    began = time.monotonic()
    for raw in process.stdout or ():
        line = raw.decode(errors="replace")
        if found := PROGRESS.search(line):
            text = found["news"] or found["error"] or found["task"]
            indent = "" if found["task"] else "  "
            console.print(f"{time.monotonic() - began:5.0f} s  {checkpoint}: {indent}{text}", markup=False)
        yield line


if __name__ == "__main__":
    sys.exit(main())
