"""What all stages share: their options, their identity, and the order in which things are written.

A stage looks for its own finished record first and leaves at once if it is there; it writes the record last.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field
from pydantic_settings import CliSuppress

from halos_eval.config.settings import FROZEN
from halos_eval.digests import fingerprint
from halos_eval.errors import BadInput, EvaluationFailed, HalosEvalError, StoreError
from halos_eval.hub import switch_off
from halos_eval.stages import provenance, tools
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import Manifest, read_manifest
from halos_eval.storage.records import (
    CheckpointRef,
    Coverage,
    Failure,
    Provenance,
    Record,
    Score,
    StageName,
    Usage,
    read_record,
    write_model,
)

log = logging.getLogger(__name__)


class Placement:
    """Marks an option that says where or how fast, and so is no part of the fingerprint.

    An option that names a file or a model carries this mark too: its content's digest stands in the fingerprint.
    """


class StageConfig(BaseModel):
    """Options that every stage has."""

    model_config = FROZEN

    name: Annotated[str | None, Placement()] = None
    """Name of the checkpoint in records and tables (default: the last part of its path that is not FINAL)."""
    suite: Annotated[str | None, Placement()] = None
    """Name of the suite that asks for this, for the record."""
    expect: Annotated[CliSuppress[str | None], Placement()] = None
    """Fingerprint that was planned: the stage refuses to run if it finds another one."""
    force: Annotated[bool, Placement()] = False
    """Run although there is a finished record. If it is killed, the same command resumes it."""
    manifest: Annotated[str | None, Placement()] = None
    """File or URL of the manifest that `halos-eval stage` wrote: data and models come from the cache, as it pins them,
    with the hub switched off (default: from the hub)."""

    def staged(self) -> Manifest | None:
        """The manifest that the stage is given, if any, with the hub switched off. Raises BadInput, StoreError."""
        if self.manifest is None:
            return None
        switch_off()
        found = read_manifest(self.manifest)
        if found is None:
            raise BadInput(f"--manifest {self.manifest}: there is none; `halos-eval stage` writes it")
        return found

    def scored_settings(self) -> dict[str, Any]:
        """The options that determine the scores, as JSON."""
        placed = {name for name, field in type(self).model_fields.items() if is_placement(field.metadata)}
        return self.model_dump(mode="json", exclude=placed)

    def argv(self) -> list[str]:
        """The options as command-line words: those that differ from their defaults, then the positional one.

        Whatever a value begins with, it cannot become another option: ``--`` stands before the positional one.
        """
        words: list[str] = []
        positional: list[str] = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is None or (not field.is_required() and value == field.default):
                continue
            if is_positional(field.metadata):
                positional.append(str(value))
                continue
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            elif isinstance(value, tuple):
                words.append(f"--{option}={json.dumps(value)}")  # commas in an item would split it otherwise
            else:
                words.append(f"--{option}={value}")
        return [*words, "--", *positional]


def is_placement(metadata: list[Any]) -> bool:
    """Whether a field is marked as Placement."""
    return any(isinstance(mark, Placement) for mark in metadata)


def is_positional(metadata: list[Any]) -> bool:
    """Whether a field is a positional argument of the command line."""
    return any("Positional" in str(mark) for mark in metadata)


class Outcome(BaseModel):
    """What the work of a stage gives back, before provenance is added."""

    scores: tuple[Score, ...] = ()
    missing: dict[str, str] = Field(default_factory=dict)
    coverage: Coverage
    details: dict[str, float] = Field(default_factory=dict)
    usage: Usage
    files: dict[str, str] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    parts: str | None = None
    """Folder of the journal, which is needed no more once the record is there."""


LOGIC = 1
"""Version of what this project itself does to a score. Raise it when a mended defect has made records wrong."""


class Job(BaseModel):
    """One stage to be run: its identity and where its record goes."""

    model_config = FROZEN

    stage: StageName
    task: str | None = None
    checkpoint: CheckpointRef
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Digest or revision of everything that determines the scores besides the settings."""
    packages: tuple[str, ...]
    """The pinned tools that determine the scores."""
    record: str
    """URL of the record."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the scores."""
        return {
            "logic": LOGIC,
            "stage": self.stage,
            "task": self.task,
            "settings": self.settings,
            "inputs": self.inputs,
            "tools": {package: tools.pinned(package) for package in self.packages},
        }

    @property
    def fingerprint(self) -> str:
        """Digest of the identity."""
        return fingerprint(self.identity)

    def journal(self, parts: str, force: bool) -> str:
        """The folder below ``parts`` for what is finished. A forced run has its own, so that a retry can resume it."""
        return filesystem.join(parts, self.fingerprint + (".again" if force else ""))


def run(job: Job, config: StageConfig, work: Callable[[], Outcome]) -> Record:
    """Run one stage unless its record is there. Raises what the work raises, after leaving a failure note."""
    found = read_record(job.record)
    if (
        found
        and found.fingerprint == job.fingerprint
        and config.expect in {None, found.fingerprint}
        and not config.force
    ):
        log.info("already there: %s", job.record)
        return found
    started = datetime.now(UTC)
    try:
        _check_promises(job, config)
        outcome = work()
        record = _record(job, config, outcome, started)
        write_model(job.record, record)
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
    """What a library raised, as an error of ours. A full disk is one, wherever it was met."""
    words = f"{type(error).__name__}: {error}"
    if disk_full(error):
        return StoreError(f"{words}. Free space there, or point TMPDIR and HF_HOME to a larger disk; then run it again")
    return EvaluationFailed(words)


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is what it, or what it was raised from, is about."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_promises(job: Job, config: StageConfig) -> None:
    if config.expect and config.expect != job.fingerprint:
        raise BadInput(
            f"planned as {config.expect}, found {job.fingerprint}: the checkpoint or an input has changed since it was "
            "planned. Trigger the evaluation again"
        )
    tools.check_installed(*job.packages)


def _record(job: Job, config: StageConfig, outcome: Outcome, started: datetime) -> Record:
    return Record(
        stage=job.stage,
        task=job.task,
        fingerprint=job.fingerprint,
        identity=job.identity,
        checkpoint=job.checkpoint,
        **outcome.model_dump(exclude={"inputs", "parts"}),
        provenance=Provenance(
            suite=config.suite,
            config=config.model_dump(mode="json"),
            inputs={**job.inputs, **outcome.inputs},
            packages=provenance.packages(),
            commit=provenance.commit(),
            command=sys.argv,
            hardware=provenance.hardware(),
            started=started,
            ended=datetime.now(UTC),
        ),
    )


@contextmanager
def reason_kept(config: StageConfig, record: str) -> Iterator[None]:
    """Leave a failure note for what is wrong before the job is known, where a plan waits for its ``record``."""
    try:
        yield
    except HalosEvalError as error:
        if config.expect and read_record(record) is None:
            _note_failure(record, error)
        raise


def _note_failure(record: str, error: HalosEvalError) -> None:
    note = Failure(error=type(error).__name__, message=str(error), exit_code=error.exit_code, at=datetime.now(UTC))
    try:
        write_model(layout.failure_beside(record), note)
    except HalosEvalError as second:
        log.warning("the reason of the failure could not be kept: %s", second)
