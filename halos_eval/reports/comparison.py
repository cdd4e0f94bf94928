"""The comparison of two checkpoints, and the outcome of a gate, as they are kept in the store.

``reports/SUITE/comparisons/A/B.json`` has a `Comparison` of A with B, see `layout.comparison_url`.
``reports/SUITE/gates/A.json`` has the `GateOutcome` of A's latest evaluation, see `layout.gate_url`.

They hold numbers, ids of items, and short texts of flipped items. These texts are strangers': escape them.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.storage import layout
from halos_eval.storage.records import read_model, update_model, write_model


class Verdict(StrEnum):
    """What can be said of checkpoint A beside checkpoint B."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "no difference that matters"
    """The whole interval is within the policy's margin."""
    UNKNOWN = "not enough evidence"
    NOT_COMPARABLE = "not comparable"


class Flip(BaseModel):
    """One item on which A and B differ, with short texts. The texts are a model's or a data set's: escape them."""

    model_config = FROZEN

    task: str
    """Part of the suite."""
    id: str
    """Id of the item, as in ``Results.samples``; of AlpacaEval, the start of the SHA-256 of its instruction."""
    a: float
    """A's score of the item, in the metric's unit."""
    b: float
    """B's score of the item."""
    prompt: str = ""
    """End of the prompt, without control characters."""
    reference: str = ""
    """Start of the reference answer."""
    answer_a: str = ""
    """Start of A's answer."""
    answer_b: str = ""
    """Start of B's answer."""


class TaskComparison(BaseModel):
    """One task. Differences are A minus B, turned so that a positive one is better for A."""

    model_config = FROZEN

    task: str
    """Part of the suite: an lm_eval task or group, ``alpaca_eval``, or ``alpaca_eval@LABEL`` for a further judge."""
    metric: str
    """Metric and, after a comma, lm_eval's filter; empty if there is none to compare."""
    n: int = 0
    """Items that both have."""
    clusters: int | None = None
    """Independent groups of these items; None if each item is independent."""
    a: float | None = None
    """A's score over these items, in the tool's unit: a fraction for lm_eval, percent for alpaca_eval."""
    b: float | None = None
    """B's score."""
    difference: float | None = None
    """Their difference; positive is better for A."""
    low: float | None = None
    """Lower bound of the interval of 95 %."""
    high: float | None = None
    """Upper bound of it."""
    p: float | None = None
    """Two-sided p-value of no difference."""
    p_holm: float | None = None
    """The p-value with Holm's correction over the suite's tasks."""
    detectable: float | None = None
    """Smallest true difference that this task finds in four of five cases, after the correction for all tasks."""
    test: str = ""
    """Name of the test."""
    verdict: Verdict
    """What can be said of this task."""
    reason: str = ""
    """Why it is not comparable, or a remark; empty otherwise."""
    better: tuple[str, ...] = ()
    """Ids of the items on which A is better, the largest difference first."""
    worse: tuple[str, ...] = ()
    """Ids of the items on which A is worse, the largest difference first."""
    result_a: str = ""
    """FINGERPRINT-DIGEST of A's result, as in ``Row.samples``; empty in older files."""
    result_b: str = ""
    """The same of B's."""

    @property
    def in_words(self) -> str:
        """The difference with its interval."""
        if self.difference is None:
            return f"{self.task}: {self.verdict} ({self.reason})"
        return (
            f"{self.task}: {self.verdict}, {self.difference:+.4g} {self.metric} "
            f"({self.low:+.4g} to {self.high:+.4g}, {len(self.better)} items better, {len(self.worse)} worse)"
        )


class Comparison(BaseModel):
    """Checkpoint A compared with checkpoint B over the tasks of a suite."""

    model_config = FROZEN

    version: Literal[1, 2] = 2
    """Version of this format. Comparisons of version 1 have the same fields, and some of their numbers are wrong."""
    a: str
    """Name of the checkpoint."""
    b: str
    """Name of the checkpoint that it is compared with."""
    suite: str
    """Name of the suite."""
    margin: float
    """Differences up to this do not matter: 0.01 is one percentage point."""
    verdict: Verdict
    """Worse if some task is worse, else better if some task is better, else what holds for all tasks."""
    differs: tuple[str, ...] = ()
    """Differences that make tasks not comparable: TASK: what differs."""
    tasks: tuple[TaskComparison, ...] = ()
    """In the suite's order."""
    flips: tuple[Flip, ...] = ()
    """The most telling items of the tasks that are worse, then of those that are better; a few of each task."""

    @property
    def caution(self) -> str:
        """Why its numbers are not to be relied on; empty if they are."""
        if self.version > 1:
            return ""
        return (
            "An earlier version of halos-eval made this comparison. It could use results of weights that were saved "
            "again, and the numbers of tags and of metrics that are no shares can be wrong. Run "
            f"`halos-eval compare {self.a} {self.b} --suite {self.suite} --save` again"
        )


class GateOutcome(BaseModel):
    """The outcome of the policy's gate for one checkpoint. Airflow's task ``verdict`` reads it."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    checkpoint: str
    """Name of the checkpoint."""
    suite: str
    """Name of the suite."""
    rule: str
    """How the baseline was chosen, in words."""
    baseline: str | None = None
    """Checkpoint that it was compared with; None if there is none."""
    verdict: Verdict | None = None
    """That of the comparison; None without one."""
    blocked: tuple[str, ...] = ()
    """Tasks that are worse and block: the task ``verdict`` fails."""
    warned: tuple[str, ...] = ()
    """Tasks that are worse and only warn."""
    reason: str = ""
    """Why there is no baseline, or no comparison; empty otherwise."""
    tasks: tuple[TaskComparison, ...] = ()
    """The tasks that are worse or better."""
    flips: tuple[Flip, ...] = ()
    """The three most telling items of a regression."""
    at: datetime
    """UTC time of the comparison."""

    def __str__(self) -> str:
        if self.baseline is None or self.verdict is None:
            return f"not compared: {self.reason}"
        kinds = {"worse, blocks": self.blocked, "worse": self.warned}
        parts = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
        better = [one.task for one in self.tasks if one.verdict == Verdict.BETTER]
        parts += [f"better: {', '.join(better)}"] if better else []
        return f"{self.verdict} beside {self.baseline}" + (f" ({'; '.join(parts)})" if parts else "")


def read_comparison(root: str, suite: str, a: str, b: str) -> Comparison | None:
    """Return the kept comparison of A with B; None if there is none. Raise StoreError."""
    return read_model(layout.comparison_url(root, suite, a, b), Comparison)


def write_comparison(root: str, comparison: Comparison) -> None:
    """Keep a comparison in the store, unless the same is there. Raise StoreError."""
    update_model(layout.comparison_url(root, comparison.suite, comparison.a, comparison.b), comparison)


def read_gate(root: str, suite: str, checkpoint: str) -> GateOutcome | None:
    """Return the outcome of a checkpoint's gate; None if there is none. Raise StoreError."""
    return read_model(layout.gate_url(root, suite, checkpoint), GateOutcome)


def write_gate(root: str, outcome: GateOutcome) -> None:
    """Keep the outcome of a gate. Raise StoreError."""
    write_model(layout.gate_url(root, outcome.suite, outcome.checkpoint), outcome)
