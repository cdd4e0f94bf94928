"""Names and defaults of the DAGs that several modules use."""

from __future__ import annotations

EVALUATION = "evaluate_checkpoint"
"""DAG that evaluates one suite on one checkpoint; the others start runs of it."""
NIGHT = "nightly_evaluation"
"""DAG that evaluates the checkpoints registered since the previous night."""
BACKFILL = "backfill_evaluation"
"""DAG that evaluates one suite on many checkpoints."""
AT_MOST = 4
"""Default number of checkpoints that a backfill evaluates at the same time."""
INSTALLATION = "halos_eval_installation"
"""Airflow's Variable with the ID of this installation, which the owners of turns in the store have."""
PACK = "pack"
"""Task of ``evaluate_checkpoint`` that runs several stages in one pod."""
