"""Write what this version leaves in a store, for the tests of later versions: ``python -m tests.upgrade.write FOLDER``.

The records are those of the tests' doubles, so that nothing has to be computed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.checkpoints.registry import Metadata
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.storage import layout
from halos_eval.storage.manifest import write_manifest
from halos_eval.storage.records import Coverage, Score
from tests.doubles import finish, make_checkpoint, make_manifest, write_failure

SUITE = """description: as the version before had it
alpaca_eval: {prompts: demo, reference: demo, judge: demo}
harness: {limit: 10}
tasks: {demo_choice: {}, demo_cloze: {}}
"""
FAILED = {"team/kto": "", "dpo": "demo_cloze"}
"""Checkpoints, with the stage that failed."""


def main(folder: str) -> None:
    """Write suites, checkpoints, a store and values of the chart into ``folder``. Its paths become @HOME@."""
    home = Path(folder).resolve()
    store = str(home / "store")
    (home / "suites").mkdir(parents=True)
    (home / "suites" / "own.yaml").write_text(SUITE)
    os.environ["HALOS_EVAL_SUITES"] = str(home / "suites")
    suite = load_suite("own")
    write_manifest(layout.manifest_url(store, "own"), make_manifest(suite))
    for name, failed in FAILED.items():
        make_checkpoint(home / "checkpoints" / name / "FINAL")
        found = FolderRegistry(str(home / "checkpoints")).get(name)
        tagged = found.model_copy(update={"metadata": Metadata(tags={"method": name.rpartition("/")[2]})})
        plan = make_plan(suite, tagged, store, load_cluster())
        save_plan(plan, suite, store)
        for job in plan.jobs:
            if job.title == failed:
                write_failure(layout.failure_beside(job.record), "the pod was killed", "EvaluationFailed")
            else:
                finish(job, scores=scores(job), coverage=Coverage(attempted=10, scored=10))
    summarize(SummarizeConfig(root=store, suite="own", output=layout.report_url(store, "own")))
    for path in (home / "store").rglob("*.json"):
        path.write_text(path.read_text().replace(str(home), "@HOME@"))
    shutil.copytree(Path(__file__).parents[2] / "helm" / "halos-eval" / "ci", home / "chart")


def scores(job):
    """The scores of a job: none of outputs, a win rate, or an accuracy."""
    if job.stage == "sample":
        return ()
    if job.stage == "judge":
        return (Score(task="alpaca_eval", metric="win_rate", value=26.5, stderr=1.25, higher_is_better=True),)
    return (Score(task=job.task, metric="acc", value=0.5, stderr=0.1, higher_is_better=True),)


if __name__ == "__main__":
    main(*sys.argv[1:])
