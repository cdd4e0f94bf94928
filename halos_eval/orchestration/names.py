"""What the DAGs are called, and what more than one module has to know of them."""

from __future__ import annotations

EVALUATION = "evaluate_checkpoint"
"""One suite on one checkpoint; the others start runs of it."""
NIGHT = "nightly_evaluation"
"""What was registered since yesterday."""
BACKFILL = "backfill_evaluation"
"""One suite on many checkpoints."""
AT_MOST = 4
"""Checkpoints that a backfill evaluates at the same time, where nobody says otherwise."""
