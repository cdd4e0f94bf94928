"""The secrets of each stage, for pods and local processes alike."""

from __future__ import annotations

from halos_eval.config.judge_client import JUDGES_VARIABLES
from halos_eval.planning.jobs import StageJob

HUB = "HF_TOKEN"
SCOPED = {HUB: {"fetch", "sample", "serve", "harness", "pack"}}
"""Variables that only these stages get. The judge's are known by their beginnings; all others belong to the store."""


def allowed(variable: str, job: StageJob) -> bool:
    """Return whether ``job`` gets the secret ``variable``. A job that executes model-written code gets none.

    The hub's token goes to jobs that read from the hub: ``fetch``, and stages without a manifest.
    """
    if job.outbox or (variable == HUB and job.manifest):
        return False
    if variable.startswith(JUDGES_VARIABLES):
        return job.stage == "judge"
    return job.stage in SCOPED.get(variable, {job.stage})
