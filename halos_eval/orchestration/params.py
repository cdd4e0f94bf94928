"""Params that several DAGs share."""

from __future__ import annotations

from typing import get_args

from airflow.sdk import Param

from halos_eval.config.cluster import BACKFILL_SLOTS, Priority
from halos_eval.orchestration.names import AT_MOST


def suite() -> Param:
    """Return the param that selects the suite."""
    return Param(
        "halos",
        type="string",
        pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$",
        examples=["halos", "halos-reasoning", "quick", "demo"],
        title="Suite",
        description="Suite to evaluate: halos (everything), quick (minutes), demo, or your own.",
    )


def priority(usual: Priority) -> Param:
    """Return the param that sets the priority, with the default ``usual``."""
    return Param(
        usual,
        type="string",
        enum=list(get_args(Priority)),
        title="Priority",
        description="Order of the runs: manual, then nightly, then backfill.",
    )


def at_most() -> Param:
    """Return the param that limits how many checkpoints are evaluated at the same time."""
    return Param(
        AT_MOST,
        type="integer",
        minimum=1,
        maximum=BACKFILL_SLOTS,
        title="At most",
        description="Checkpoints that are evaluated at the same time.",
    )
