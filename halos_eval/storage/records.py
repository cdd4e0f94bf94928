"""The record that every stage writes last: what was scored, on what, with what, and how long it took."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from halos_eval.config.settings import FROZEN
from halos_eval.errors import StoreError, describe
from halos_eval.storage import filesystem

StageName = Literal["sample", "judge", "harness"]
Model = TypeVar("Model", bound=BaseModel)


class Score(BaseModel):
    """One number. A metric that could not be computed is not here: it stands in ``Record.missing`` with its reason."""

    model_config = FROZEN

    task: str
    """lm_eval task or group, or ``alpaca_eval``."""
    group: str | None = None
    """The group whose breakdown this is; None for what the suite asked for itself."""
    metric: str
    """Name as the tool gives it: acc, exact_match, win_rate (percent), ..."""
    filter: str = "none"
    """lm_eval's filter that made the answer comparable."""
    value: float
    """The value, in the tool's own unit (fraction for lm_eval, percent for alpaca_eval)."""
    stderr: float | None = None
    """Standard error in the same unit; None where the tool gives none."""
    higher_is_better: bool | None = None
    """None where the tool does not say."""


class Coverage(BaseModel):
    """How much of the work has a result."""

    model_config = FROZEN

    attempted: int
    """Items that should have a result: prompts x samples, pairs, or documents."""
    scored: int
    """Items that have one."""


class Usage(BaseModel):
    """What was used up."""

    model_config = FROZEN

    prompt_tokens: int | None = None
    """Tokens read; None where the tool does not count them."""
    completion_tokens: int | None = None
    """Tokens made."""
    price_usd: float | None = None
    """By the judge's price list; None where it has none. A local model costs 0 only if its list says so."""
    load_seconds: float
    """From the start of the work to the first request: imports, weights, warm-up."""
    work_seconds: float
    """From the first request to the last result, of this run: a resumed run counts only its own."""
    resumed: float | None = Field(None, ge=0, le=1)
    """Share of the work that was there from a run that was killed, and is in no seconds; None where nobody counted."""


class CheckpointRef(BaseModel):
    """Which checkpoint it was."""

    model_config = FROZEN

    name: str
    """Name in the registry and in tables."""
    location: str
    """Folder or hub repository."""
    digest: str
    """Digest of weights, configuration and tokenizer, or the hub commit."""


class Provenance(BaseModel):
    """How to get the same numbers again."""

    model_config = FROZEN

    suite: str | None = None
    """Name of the suite that asked for it."""
    config: dict[str, Any]
    """Every option of the command, defaults included."""
    inputs: dict[str, str]
    """Revision or content digest of everything that was read."""
    packages: dict[str, str]
    """Version of every installed package that matters."""
    commit: str | None
    """Commit of halos_eval, with ``+dirty`` if there were changes; None where it cannot be told."""
    command: list[str]
    """The command line."""
    hardware: dict[str, str]
    """Host, processor, memory, GPUs."""
    started: datetime
    """UTC."""
    ended: datetime
    """UTC."""


class Record(BaseModel):
    """One finished stage. Its existence means that everything it names is in the store."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    stage: StageName
    """Which stage."""
    task: str | None = None
    """lm_eval task of a harness stage."""
    fingerprint: str
    """Digest of ``identity``."""
    identity: dict[str, Any]
    """All that determines the scores: settings, inputs, tool versions."""
    checkpoint: CheckpointRef
    """What was evaluated."""
    scores: tuple[Score, ...] = ()
    """Every metric with its filter; empty for a sample stage."""
    missing: dict[str, str] = {}
    """Metrics that should be there and are not, each with its reason."""
    coverage: Coverage
    """Attempted and scored."""
    details: dict[str, float] = {}
    """Further figures of the stage: average length, truncated outputs, ..."""
    usage: Usage
    """Tokens, price, seconds."""
    files: dict[str, str] = {}
    """Files beside this record, each with its SHA-256."""
    provenance: Provenance
    """How to get the same numbers again."""


class Failure(BaseModel):
    """Why a stage has no record. A later success removes it."""

    model_config = FROZEN

    error: str
    """Class name of the error."""
    message: str
    """What it said; it names the remedy."""
    exit_code: int
    """Exit code of the command."""
    at: datetime
    """UTC."""


def read_model(url: str, kind: type[Model]) -> Model | None:
    """The record, failure or plan at ``url``, or None where there is none. Raises StoreError where it is damaged."""
    try:
        return kind.model_validate_json(filesystem.read_bytes(url))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        name = kind.__name__.lower()
        raise StoreError(f"{url} is no {name} of this version: delete it and run again ({describe(error)})") from error


def read_record(url: str) -> Record | None:
    """The record at ``url``, or None. Raises StoreError."""
    return read_model(url, Record)


def read_failure(url: str) -> Failure | None:
    """The failure at ``url``, or None. Raises StoreError."""
    return read_model(url, Failure)


def write_model(url: str, model: BaseModel) -> None:
    """Write a record, failure or plan atomically."""
    filesystem.write_bytes(url, (model.model_dump_json(indent=2) + "\n").encode())
