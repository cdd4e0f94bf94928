"""Params that several DAGs share."""

from __future__ import annotations

from typing import get_args

from airflow.sdk import Param

from halos_eval.config.cluster import BACKFILL_SLOTS, CPU_PROFILE, Priority, load_cluster
from halos_eval.config.suite import suite_names
from halos_eval.orchestration.names import AT_MOST


def suite() -> Param:
    """Return the param that selects the suite."""
    return Param(
        "halos",
        type="string",
        pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$",
        examples=suite_names(),
        title="Suite",
        description="Suite to evaluate: halos (everything), halos-reasoning, quick (minutes), demo, or your own.",
    )


def profile() -> Param:
    """Return the param that selects the profile of the pods that load the model."""
    return Param(
        None,
        type=["string", "null"],
        pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        examples=[name for name in load_cluster().profiles if name != CPU_PROFILE],
        title="Profile",
        description="Profile of the pods that load the model. Empty: that of the checkpoint or the suite.",
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
