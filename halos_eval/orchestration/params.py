"""Fields that more than one trigger form has."""

from __future__ import annotations

from typing import get_args

from airflow.sdk import Param

from halos_eval.config.cluster import BACKFILL_SLOTS, Priority
from halos_eval.orchestration.names import AT_MOST


def suite() -> Param:
    """The suite."""
    return Param(
        "halos",
        type="string",
        pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$",
        examples=["halos", "quick", "demo"],
        title="Suite",
        description="What to evaluate: halos (all of it), quick (minutes), demo, or a suite of your own.",
    )


def priority(usual: Priority) -> Param:
    """What goes first."""
    return Param(
        usual,
        type="string",
        enum=list(get_args(Priority)),
        title="Priority",
        description="Nightly work yields to manual work, a backfill to both.",
    )


def at_most() -> Param:
    """How many at a time."""
    return Param(
        AT_MOST,
        type="integer",
        minimum=1,
        maximum=BACKFILL_SLOTS,
        title="At most",
        description="Older checkpoints that are evaluated at the same time.",
    )
