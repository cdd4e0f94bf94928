"""The records that a suite's table shows of one checkpoint."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.errors import BadInput, StoreError
from halos_eval.planning.plan import Plan
from halos_eval.reports.results import labelled, why_missing
from halos_eval.reports.suite_rows import SuiteRows
from halos_eval.storage import layout
from halos_eval.storage.records import Record, readable, readable_all


class Shown(NamedTuple):
    """One job of a checkpoint with the record that the table shows."""

    part: str
    """The part of the suite: the task, ``alpaca_eval``, or ``alpaca_eval@LABEL`` for a further judge."""
    url: str
    """URL of the record."""
    record: Record | None
    """None if there is none; ``reason`` says why."""
    metric: str | None
    """The suite's metric of the task; None: the first that lm_eval prints."""
    reason: str
    """Why there is no record, or why it is not current; empty otherwise."""
    gpus: int
    """GPUs of its job."""


class ShownParts(NamedTuple):
    """All jobs of a checkpoint."""

    checkpoint: str
    """Name of the checkpoint."""
    weights: str
    """Digest of its weights at the latest plan."""
    tags: dict[str, str]
    """Its tags."""
    registered: datetime | None
    """UTC time of its registration, if it is known."""
    parts: tuple[Shown, ...]
    """sample, the judges, then the tasks."""

    def part(self, name: str) -> Shown | None:
        """Return the job of a part by its name; None if the checkpoint has none."""
        return next((one for one in self.parts if one.part == name), None)

    def outdated(self, record: Record) -> str:
        """Return why a result is not of the weights and the outputs that the checkpoint has; empty if it is."""
        if record.checkpoint.digest != self.weights:
            return "is not current: weights"
        if record.stage != "judge":
            return ""
        if not (sampled := self.sampled):
            return "has no record of the judged outputs"
        judged = record.provenance.inputs.get("outputs_sha256")
        return "" if judged in sampled.files.values() else "is not current: the outputs were sampled again"

    @property
    def sampled(self) -> Record | None:
        """The record of its outputs."""
        one = self.part("sample")
        return one.record if one else None


def shown(root: str, suite: str, checkpoint: str, rows: SuiteRows | None = None) -> ShownParts:
    """Return the records that ``suite`` shows of ``checkpoint``. Raise BadInput if it has no plan, or StoreError."""
    url = layout.plan_url(root, suite, checkpoint)
    plan, damage = readable(url, Plan)
    if damage:
        raise StoreError(damage)
    if plan is None:
        raise BadInput(f"{root} has no plan of {suite} for {checkpoint}: evaluate it first, or name another checkpoint")
    current, outdated = (rows or SuiteRows(root, suite)).shown(plan)
    read = readable_all([job.record for job in current.jobs], Record)
    parts = []
    for job, (record, damage) in zip(current.jobs, read, strict=True):
        part = labelled(ALPACA_EVAL, job.label) if job.stage == "judge" else job.task or job.stage
        reason = outdated.get(job.title, "") if record else damage or why_missing(job.record)
        parts.append(Shown(part, job.record, record, job.metric, reason, job.gpus))
    return ShownParts(plan.checkpoint.name, plan.checkpoint.digest, plan.tags, plan.registered, tuple(parts))
