"""Run several stages, one after the other, on one load of the model.

Each runs through the code that runs it alone, with the same record, journal and failure note. So a failed stage costs
only its own result, and a killed pack goes on where it was: finished stages have records, the current one a journal.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

from pydantic import BaseModel
from pydantic_settings import CliApp, CliPositionalArg, CliSuppress, SettingsError

from halos_eval import errors
from halos_eval.checkpoints.weights import Weights
from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput, EvaluationFailed, HalosEvalError
from halos_eval.stages.engine import Engine
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.harness.stage import harness
from halos_eval.stages.options import argv_of
from halos_eval.stages.run import named
from halos_eval.stages.sample import SampleConfig, sample
from halos_eval.stages.vllm import EngineOptions, Load, load_engine
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Failure, readable, readable_record

log = logging.getLogger(__name__)

MEMORY = re.compile(r"out of memory|OutOfMemory", re.I)


class PackConfig(BaseModel):
    """Run several sample and harness stages of one checkpoint, loading the model once."""

    model_config = FROZEN

    commands: CliPositionalArg[str]
    """JSON list of their command lines, each a list of words: [["harness", "--task=arc_easy", ..., "MODEL"], ...]."""
    since: CliSuppress[datetime | None] = None
    """Of forced stages, those with a record since this time do not run again."""
    owner: CliSuppress[str | None] = None
    """Task of Airflow that runs this pack, see ``StageConfig.owner``."""
    failed: CliSuppress[str] = ""
    """Numbers, joined by commas, of the stages that failed in an earlier process of this pack."""
    again: CliSuppress[str] = ""
    """Numbers of the stages that ran out of memory once."""


Stage = SampleConfig | HarnessConfig
StartOver = Callable[[Sequence[str]], NoReturn]


class Member(NamedTuple):
    """One stage of a pack."""

    title: str
    config: Stage

    @property
    def record(self) -> str:
        """URL of the record that ends it."""
        if isinstance(self.config, SampleConfig):
            return layout.record_beside(self.config.output)
        name = layout.GENERATED if self.config.answers_only else layout.RECORD
        return filesystem.join(self.config.output_dir, name)

    def run(self, load: Load) -> None:
        """Run the stage. Raise its errors."""
        if isinstance(self.config, SampleConfig):
            sample(self.config, load)
        else:
            harness(self.config, load)

    def finished_since(self, moment: datetime | None) -> bool:
        """Return whether a forced stage has been run again since ``moment``."""
        if moment is None or not self.config.force:
            return False
        found = readable_record(self.record)[0]
        return bool(found and found.fingerprint == self.config.expect and found.provenance.started >= moment)


class Kept:
    """Loads an engine once, and gives it to each stage that needs the same."""

    def __init__(self, load: Load = load_engine) -> None:
        self._load = load
        self._key: tuple[Any, ...] | None = None
        self._engine: Engine | None = None

    def load(self, weights: Weights, options: EngineOptions) -> Engine:
        """Return the engine. Raise BadInput if the one that is loaded has other weights or options."""
        key = (weights.digest, weights.model, weights.revision, weights.adapter, options)
        if self._engine is None:
            self._engine, self._key = self._load(weights, options), key
        elif key != self._key:
            raise BadInput("this stage needs an engine with other settings than the pack's. Run it in a pod of its own")
        engine = copy.copy(self._engine)
        # Stages change the tokenizer: its padding, its chat template.
        engine.tokenizer = copy.deepcopy(self._engine.tokenizer)
        return engine

    @property
    def loaded(self) -> bool:
        """Whether the engine was loaded, or loading it began."""
        return self._engine is not None


def start_over(argv: Sequence[str]) -> NoReturn:
    """Replace this process by the command ``argv``, which gives all memory back. Files in work are closed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "halos_eval.cli.main", *argv])  # noqa: S606 (our own program)


def pack(config: PackConfig, load: Load = load_engine, start_over: StartOver = start_over) -> None:
    """Run the stages. Raise the error of one that failed, after all have been run; retryable errors come first.

    A stage that runs out of memory is run once more, in a new process. After another unexpected error, which may have
    damaged the engine, the stages after it get a new process as well.
    """
    members = _members(config)
    failed, again = _numbers(config.failed), _numbers(config.again)
    seen: dict[int, HalosEvalError] = {}
    kept = Kept(load)
    for number, member in enumerate(members):
        if number in failed or member.finished_since(config.since):
            continue
        log.info("stage %d of %d: %s", number + 1, len(members), member.title)
        try:
            member.run(kept.load)
        except Exception as error:  # noqa: BLE001 (the other stages must run)
            seen[number] = error if isinstance(error, HalosEvalError) else named(error)
            log.error("%s failed: %s: %s", member.title, type(seen[number]).__name__, error)
            if out_of_memory(error) and number not in again:
                log.info("%s is run once more, in a new process", member.title)
                _start_over(config, failed, again | {number}, start_over)
            failed.add(number)
            if isinstance(seen[number], EvaluationFailed) and kept.loaded and number + 1 < len(members):
                _start_over(config, failed, again, start_over)
    if failed:
        raise _summary([(members[number], seen.get(number) or _noted(members[number])) for number in sorted(failed)])


def _start_over(config: PackConfig, failed: set[int], again: set[int], start_over: StartOver) -> NoReturn:
    update = {"failed": _written(failed), "again": _written(again)}
    start_over(["pack", *argv_of(config.model_copy(update=update))])


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether ``error``, or one that it was raised from, says that a GPU's memory is exhausted."""
    while error is not None:
        if MEMORY.search(f"{type(error).__name__}: {error}"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _members(config: PackConfig) -> list[Member]:
    try:
        commands = json.loads(config.commands)
        return [_member([str(word) for word in words], config.owner) for words in commands]
    except (ValueError, TypeError, SettingsError) as error:
        raise BadInput(f"the stages of this pack are invalid ({error}); expected a JSON list of commands") from error


def _member(words: list[str], owner: str | None) -> Member:
    command, *rest = words
    kinds: dict[str, type[Stage]] = {"sample": SampleConfig, "harness": HarnessConfig}
    if command not in kinds:
        raise BadInput(f"{command} cannot be in a pack; expected {' or '.join(kinds)}")
    found = CliApp.run(kinds[command], cli_args=rest, cli_exit_on_error=False)
    if owner:
        found = found.model_copy(update={"owner": owner})
    return Member(getattr(found, "task", command), found)


def _numbers(text: str) -> set[int]:
    return {int(one) for one in text.split(",") if one}


def _written(numbers: set[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _noted(member: Member) -> HalosEvalError:
    """Return the error of a stage that failed in an earlier process, from its failure note."""
    note = readable(layout.failure_beside(member.record), Failure)[0]
    kind = getattr(errors, note.error, EvaluationFailed) if note else EvaluationFailed
    return kind(note.message) if note else EvaluationFailed("its failure note is missing; the log above has the reason")


def _summary(found: list[tuple[Member, HalosEvalError]]) -> HalosEvalError:
    """Return the error that the pack ends with."""
    member, error = next((one for one in found if one[1].retryable), found[0])
    others = f"; failed as well: {', '.join(one.title for one, _ in found if one is not member)}" if found[1:] else ""
    return type(error)(f"{member.title}: {error}{others}")
