"""Which stage is given which secret: the same for pods and for local processes."""

from __future__ import annotations

from halos_eval.planning.jobs import StageJob

HUB = "HF_TOKEN"
SCOPED = {"OPENAI_API_KEY": {"judge"}, HUB: {"fetch", "sample", "harness"}}
"""Variables that only these stages get. Others are the store's."""


def allowed(variable: str, job: StageJob) -> bool:
    """Whether ``job`` is given the secret ``variable``. One that executes the model's code is given none.

    The hub's token goes where data is fetched: to staging, and to stages only where nothing is staged for them.
    """
    if job.outbox or (variable == HUB and job.manifest):
        return False
    return job.stage in SCOPED.get(variable, {job.stage})
