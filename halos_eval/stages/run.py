"""Run a stage: look for its finished record first, and write the record last.

If the record exists, the stage ends at once.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import BaseModel, Field

from halos_eval.checkpoints.weights import Weights
from halos_eval.errors import BadInput, EvaluationFailed, HalosEvalError, StoreError
from halos_eval.stages import provenance, tools
from halos_eval.stages.identity import Job
from halos_eval.stages.options import StageConfig
from halos_eval.storage import filesystem, layout
from halos_eval.storage.claims import Busy, claimed, this_process
from halos_eval.storage.journal import Journal
from halos_eval.storage.records import (
    Coverage,
    Failure,
    Provenance,
    Record,
    Score,
    Usage,
    readable_record,
    write_model,
)

log = logging.getLogger(__name__)


class Outcome(BaseModel):
    """Result of a stage's work, before provenance is added."""

    scores: tuple[Score, ...] = ()
    missing: dict[str, str] = Field(default_factory=dict)
    coverage: Coverage
    details: dict[str, float] = Field(default_factory=dict)
    usage: Usage
    files: dict[str, str] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    generated_by: Provenance | None = None
    """Provenance of the process that generated what this one scored."""
    parts: str | None = None
    """Folder of the journal. It is deleted once the record is written."""


def run(job: Job, config: StageConfig, work: Callable[[], Outcome], trusted: bool = True) -> Record:
    """Run one stage unless its record exists. Raise the error of ``work``, after writing a failure note.

    With ``trusted`` false, a record that is there already does not count: something else may have written it. Raise
    Busy if another process runs the same stage.
    """
    if found := _finished(job, config, trusted):
        return found
    with claimed(layout.claims_beside(job.record), config.owner or this_process()) as confirm:
        # Another process may have finished it just now.
        return _finished(job, config, trusted) or _run(job, config, work, confirm)


def _finished(job: Job, config: StageConfig, trusted: bool) -> Record | None:
    """Return the record of a finished stage, if this command accepts it."""
    found, damage = readable_record(job.record)
    if damage:
        log.warning("runs again: %s", damage)
    if config.force or not trusted or found is None or found.fingerprint != job.fingerprint:
        return None
    if config.expect not in {None, found.fingerprint}:
        return None
    log.info("skipped: the record exists (%s)", job.record)
    return found


def _run(job: Job, config: StageConfig, work: Callable[[], Outcome], confirm: Callable[[], None]) -> Record:
    started = datetime.now(UTC)
    try:
        _check_promises(job, config)
        outcome = work()
        record = _record(job, config, outcome, started)
        confirm()
        write_model(job.record, record)
    except Busy:
        raise
    except HalosEvalError as error:
        _note_failure(job.record, error)
        raise
    except Exception as error:
        failed = named(error)
        _note_failure(job.record, failed)
        raise failed from error
    filesystem.delete(layout.failure_beside(job.record))
    if outcome.parts:
        filesystem.delete(outcome.parts)
    return record


def named(error: Exception) -> HalosEvalError:
    """Return a library's error as a HalosEvalError: StoreError for a full disk, otherwise EvaluationFailed."""
    words = f"{type(error).__name__}: {error}"
    if disk_full(error):
        return StoreError(f"{words}. Free space there, or set TMPDIR and HF_HOME to a larger disk; then run it again")
    return EvaluationFailed(words)


def disk_full(error: BaseException | None) -> bool:
    """Return whether ``error``, or an error that it was raised from, reports a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_promises(job: Job, config: StageConfig) -> None:
    if config.expect and config.expect != job.fingerprint:
        raise BadInput(
            f"the fingerprint changed since planning ({job.fingerprint}); expected {config.expect}. The checkpoint or "
            "an input has changed. Trigger the evaluation again"
        )
    tools.check_installed(*job.own_packages)


def _record(job: Job, config: StageConfig, outcome: Outcome, started: datetime) -> Record:
    earlier = outcome.generated_by
    return Record(
        stage=job.stage,
        task=job.task,
        fingerprint=job.fingerprint,
        identity=job.document,
        checkpoint=job.checkpoint,
        **outcome.model_dump(exclude={"inputs", "parts", "generated_by"}),
        provenance=Provenance(
            suite=config.suite,
            config={**(earlier.config if earlier else {}), **config.model_dump(mode="json")},
            inputs={**job.inputs, **(earlier.inputs if earlier else {}), **outcome.inputs},
            packages=provenance.packages(),
            commit=provenance.commit(),
            command=sys.argv,
            hardware=earlier.hardware if earlier else provenance.hardware(),
            started=started,
            ended=datetime.now(UTC),
        ),
    )


@contextmanager
def reason_kept(config: StageConfig, record: str) -> Iterator[None]:
    """Write a failure note for an error before the job is known, if a plan expects the ``record``."""
    try:
        yield
    except HalosEvalError as error:
        if config.expect and readable_record(record)[0] is None:
            _note_failure(record, error)
        raise


@contextmanager
def loading(weights: Weights) -> Iterator[None]:
    """Raise BadInput if the weights were saved again while they were loaded, whether loading failed or not."""
    try:
        yield
    except Exception:
        weights.check_unchanged()
        raise
    weights.check_unchanged()


def check_still_named(weights: Weights, journal: Journal) -> None:
    """Raise BadInput if the weights were saved again while they were evaluated, and delete the ``journal``.

    transformers maps weight files into memory, so that files that are overwritten change a loaded model.
    """
    try:
        weights.check_unchanged()
    except BadInput:
        filesystem.delete(journal.url)
        raise


def _note_failure(record: str, error: HalosEvalError) -> None:
    note = Failure(error=type(error).__name__, message=str(error), exit_code=error.exit_code, at=datetime.now(UTC))
    try:
        write_model(layout.failure_beside(record), note)
    except HalosEvalError as second:
        log.warning("the failure note could not be written: %s", second)
