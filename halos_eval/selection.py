"""What is to be evaluated, of all that is registered: what a night, a backfill or a registration starts."""

from __future__ import annotations

from pydantic import BaseModel

from halos_eval.settings import FROZEN


class Evaluation(BaseModel):
    """One suite on one checkpoint: one run of ``evaluate_checkpoint``."""

    model_config = FROZEN

    checkpoint: str
    """Name of the checkpoint."""
    suite: str
    """Name of the suite."""
    run_id: str
    """The run's name: the same for whoever asks for the same, so that it is done once."""


class Selection(BaseModel):
    """What is started, and what is not and why."""

    model_config = FROZEN

    evaluations: tuple[Evaluation, ...] = ()
    """What is started, by the time of registration."""
    complete: tuple[str, ...] = ()
    """CHECKPOINT: SUITE, of what has been evaluated already."""
    left_out: dict[str, str] = {}
    """What is not started though it is registered (half-written, over the limit, no rule for it), with the reason."""
