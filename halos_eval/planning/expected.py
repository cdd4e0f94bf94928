"""The work that the stages of a suite are expected to do, and which of them share a pod because of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import NamedTuple

from pydantic import BaseModel, Field

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, AlpacaEvalSettings, Suite, TaskSettings
from halos_eval.config.yaml_file import parse_yaml, validated
from halos_eval.planning.packing import Candidate, EngineKey, Packing, packed
from halos_eval.planning.planner import profile_of
from halos_eval.shipped import shipped

TABLE = "work.yaml"
SAMPLE = "sample"


class TaskWork(BaseModel):
    """The requests of an lm_eval task."""

    model_config = FROZEN

    documents: int = Field(ge=1)
    """Documents of the task, or of all subtasks of a group."""
    subtasks: int = Field(1, ge=1)
    """Subtasks of a group."""
    loglikelihood: int = Field(0, ge=0)
    """Log-likelihood requests for each document."""
    generate: int = Field(0, ge=0)
    """Answers to generate for each document."""


class WorkTable(BaseModel):
    """The table that ships, for stages without records."""

    model_config = FROZEN

    load_seconds: float = Field(gt=0)
    """Seconds to load and compile a model."""
    seconds: dict[str, float]
    """Seconds of one log-likelihood request and of one answer, with a full batch."""
    tasks: dict[str, TaskWork]
    """Requests by task."""
    prompt_sets: dict[str, int]
    """Number of prompts by prompt set."""


class Expected(NamedTuple):
    """Seconds that stages took in earlier evaluations, as medians."""

    work: Mapping[tuple[str, str], float]
    """Seconds without loading, by title and GPU profile."""
    load: Mapping[str, float]
    """Seconds of loading the model, by GPU profile."""


NOTHING = Expected({}, {})


def packing_of(suite: Suite, checkpoint: Checkpoint, titles: Collection[str], expected: Expected = NOTHING) -> Packing:
    """Return which stages of ``suite`` on ``checkpoint`` share a pod, of those with these titles."""
    if suite.packing == "none":
        return Packing()
    return packed([one for one in candidates_of(suite, checkpoint, expected) if one.title in titles])


def candidates_of(suite: Suite, checkpoint: Checkpoint, expected: Expected = NOTHING) -> list[Candidate]:
    """Return the stages of ``suite`` that load the model of ``checkpoint``, with their expected work."""
    return [_candidate(suite, checkpoint, part, expected) for part in suite.parts]


def _candidate(suite: Suite, checkpoint: Checkpoint, part: str, expected: Expected) -> Candidate:
    settings = suite.settings_of(part)
    title = SAMPLE if part == ALPACA_EVAL else part
    profile = profile_of(suite, checkpoint, settings.profile)
    own = settings.sampling if isinstance(settings, AlpacaEvalSettings) else settings
    vllm = isinstance(settings, AlpacaEvalSettings) or settings.backend == "vllm"
    engine = EngineKey(profile, own.dtype, own.max_model_len, own.reproducible) if vllm else None
    work = expected.work.get((title, profile), work_of(part, settings))
    return Candidate(title, engine, work, max(expected.load.get(profile, work_table().load_seconds), 1))


def work_of(
    part: str, settings: AlpacaEvalSettings | TaskSettings, seconds: Mapping[str, float] | None = None
) -> float | None:
    """Return the expected seconds of a stage without records; None if the table does not have it.

    :param seconds: those of one request of each kind (default: the table's).
    """
    table = work_table()
    seconds = seconds or table.seconds
    if isinstance(settings, AlpacaEvalSettings):
        prompts: int | None = table.prompt_sets.get(settings.prompts)
        return None if prompts is None else prompts * seconds["generate"]
    task = table.tasks.get(part)
    if task is None:
        return None
    share = settings.limit or 1.0
    if isinstance(share, int):  # documents of each subtask
        share = min(1.0, share * task.subtasks / task.documents)
    each: float = sum(getattr(task, kind) * one for kind, one in seconds.items())
    return share * task.documents * each * (settings.repeats or 1)


@cache
def work_table() -> WorkTable:
    """Return the table that ships."""
    path = shipped(TABLE)
    return validated(parse_yaml(path.read_bytes(), str(path)), WorkTable, str(path))
