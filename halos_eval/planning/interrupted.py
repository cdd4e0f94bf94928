"""Evaluations that the infrastructure ended. A night starts them again, unlike those that failed for another reason."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, Suite
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import readable, write_model

STAGES = {"sample": ALPACA_EVAL, "judge": ALPACA_EVAL}
"""The part of a suite to which a stage without a task belongs."""


class Note(BaseModel):
    """A stage that ended because the infrastructure failed for too long."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    run: str
    """Name of the run of ``evaluate_checkpoint``."""
    stage: str
    """The lm_eval task, or the stage."""
    reason: str
    """What failed, and how often."""
    at: datetime
    """UTC."""


class Interrupted(NamedTuple):
    """The latest run of an evaluation that the infrastructure ended."""

    run: str
    """Its name."""
    parts: tuple[str, ...]
    """Parts of the suite to run again; empty: all that have no result."""


def write_note(root: str, suite: str, checkpoint: str, stage: str, run: str, reason: str) -> None:
    """Keep that ``stage`` of this run ended because the infrastructure failed. Raise StoreError."""
    note = Note(run=run, stage=stage, reason=reason, at=datetime.now(UTC))
    # A file for each stage, because several of them end at the same moment if a node is lost.
    write_model(filesystem.join(layout.interrupted_url(root, suite, checkpoint), f"{stage}.json"), note)


def interrupted(root: str, suite: Suite, checkpoint: str) -> Interrupted | None:
    """Return the latest run that the infrastructure ended; None if there is none. Raise StoreError."""
    notes = _notes(layout.interrupted_url(root, suite.name, checkpoint))
    if not notes:
        return None
    run = max(notes, key=lambda note: note.at).run
    stages = {note.stage for note in notes if note.run == run}
    # Without fetched data or a table, every part may be concerned.
    known = {STAGES.get(stage, stage) for stage in stages}
    return Interrupted(run, tuple(part for part in suite.parts if part in known) if known <= {*suite.parts} else ())


def _notes(folder: str) -> Sequence[Note]:
    found = (readable(filesystem.join(folder, name), Note)[0] for name in filesystem.entries(folder))
    return [note for note in found if note]
