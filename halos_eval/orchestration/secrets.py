"""Which stage is given which secret: the same for pods and for local processes."""

from __future__ import annotations

from halos_eval.plan import StageJob

SCOPED = {"OPENAI_API_KEY": {"judge"}, "HF_TOKEN": {"sample", "harness"}}
"""Variables that only these stages get; HF_TOKEN where data from the hub is fetched. Others are the store's."""


def allowed(variable: str, job: StageJob) -> bool:
    """Whether ``job`` is given the secret ``variable``. One that executes the model's code is given none."""
    return job.outbox is None and job.stage in SCOPED.get(variable, {job.stage})
