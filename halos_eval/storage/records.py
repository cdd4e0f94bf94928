"""The record, which every stage writes last: scores, coverage, usage and provenance. Also the failure note."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError

from halos_eval.config.settings import FROZEN
from halos_eval.errors import StoreError, describe
from halos_eval.storage import filesystem
from halos_eval.untrusted import parse_json

StageName = Literal["sample", "judge", "harness"]
Model = TypeVar("Model", bound=BaseModel)


class Score(BaseModel):
    """The value of one metric. A metric that could not be computed is in ``Record.missing`` with its reason."""

    model_config = FROZEN

    task: str
    """lm_eval task or group, or ``alpaca_eval``."""
    group: str | None = None
    """lm_eval group that this task is a subtask of; None for a task of the suite itself."""
    metric: str
    """The tool's name of the metric: acc, exact_match, win_rate (percent), ..."""
    filter: str = "none"
    """lm_eval's filter that extracted the answer."""
    value: float
    """The value, in the tool's own unit (fraction for lm_eval, percent for alpaca_eval)."""
    stderr: float | None = None
    """Standard error in the same unit; None if the tool gives none."""
    clusters: int | None = None
    """Number of groups of dependent documents that the standard error is made of; None: documents are independent."""
    higher_is_better: bool | None = None
    """Whether a higher value is better; None if the tool does not say."""


class Coverage(BaseModel):
    """Number of items that have a result, of the items that should have one."""

    model_config = FROZEN

    attempted: int
    """Items that should have a result: prompts x samples, pairs, or documents."""
    scored: int
    """Items that have a result."""


class Usage(BaseModel):
    """Tokens, price and time of a stage."""

    model_config = FROZEN

    prompt_tokens: int | None = None
    """Input tokens; None if the tool does not count them."""
    completion_tokens: int | None = None
    """Output tokens; None if the tool does not count them."""
    price_usd: float | None = None
    """Price of the judge's answers; None if it is unknown. The input ``judge_prices`` has the prices, or the reason."""
    load_seconds: float
    """Seconds from the start of the work to the first request: imports, weights, warm-up."""
    work_seconds: float
    """Seconds from the first request to the last result of this run. A resumed run does not include earlier ones."""
    resumed: float | None = Field(None, ge=0, le=1)
    """Share of the work that an interrupted run had finished; its time is not included. None if it was not counted."""


class CheckpointRef(BaseModel):
    """Reference to the evaluated checkpoint."""

    model_config = FROZEN

    name: str
    """Name in the registry and in tables."""
    location: str
    """Folder or hub repository."""
    digest: str
    """Digest of weights, configuration and tokenizer, or the hub commit."""


class Provenance(BaseModel):
    """Everything needed to reproduce the scores."""

    model_config = FROZEN

    suite: str | None = None
    """Name of the suite that the stage belongs to."""
    config: dict[str, Any]
    """All options of the command, including defaults."""
    inputs: dict[str, str]
    """Revision or content digest of every input; with the prefix ``prompt:``, how prompts were made."""
    packages: dict[str, str]
    """Version of every installed package that can affect scores."""
    commit: str | None
    """Commit of halos_eval, with ``+dirty`` if there were uncommitted changes; None if it is unknown."""
    command: list[str]
    """The command line."""
    hardware: dict[str, str]
    """Host, processor, memory, GPUs."""
    started: datetime
    """UTC."""
    ended: datetime
    """UTC."""


class Record(BaseModel):
    """One finished stage. It is written last, so all files that it names are in the store."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    stage: StageName
    """Name of the stage."""
    task: str | None = None
    """lm_eval task of a harness stage."""
    fingerprint: str
    """Digest of ``identity``."""
    identity: dict[str, Any]
    """Everything that determines the scores: settings, inputs, tool versions."""
    checkpoint: CheckpointRef
    """The evaluated checkpoint."""
    scores: tuple[Score, ...] = ()
    """Value of every metric and filter; empty for a sample stage."""
    missing: dict[str, str] = {}
    """Missing metrics, each with its reason."""
    coverage: Coverage
    """Attempted and scored items."""
    details: dict[str, float] = {}
    """Additional numbers of the stage: average length, truncated outputs, ..."""
    usage: Usage
    """Tokens, price and seconds."""
    files: dict[str, str] = {}
    """Files beside this record, each with its SHA-256."""
    provenance: Provenance
    """Everything needed to reproduce the scores."""


class Failure(BaseModel):
    """The reason why a stage has no record. A later success removes the note."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    error: str
    """Class name of the error."""
    message: str
    """Message of the error; it names the remedy."""
    exit_code: int
    """Exit code of the command."""
    at: datetime
    """UTC."""


def read_model(url: str, kind: type[Model]) -> Model | None:
    """Return the document at ``url`` as ``kind``, or None if there is none.

    Raises StoreError if it is damaged, or of a newer format than this version knows.
    """
    try:
        data = filesystem.read_bytes(url)
    except FileNotFoundError:
        return None
    return _parsed(url, data, kind)


def _parsed(url: str, data: bytes, kind: type[Model]) -> Model:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        name = kind.__name__.lower()
        if _is_newer(data, kind):
            raise StoreError(f"{url} is a {name} of a newer version of halos-eval. Upgrade this one") from error
        raise StoreError(
            f"{url} is not a valid {name} of this version ({describe(error)}). Delete it and run again"
        ) from error


def _is_newer(data: bytes, kind: type[BaseModel]) -> bool:
    """Return whether a document has a higher version than those that ``kind`` can be."""
    known = get_args(kind.model_fields["version"].annotation) if "version" in kind.model_fields else ()
    try:
        found = parse_json(data)["version"]
    except (ValueError, LookupError, TypeError):
        return False
    return isinstance(found, int) and found > max(known, default=found)


def readable(url: str, kind: type[Model]) -> tuple[Model | None, str]:
    """Return the document at ``url`` and "", or None and the reason if it is damaged; None and "" if there is none.

    Raises StoreError if the storage fails: that says nothing of the document.
    """
    return readable_all([url], kind)[0]


def readable_all(urls: Sequence[str], kind: type[Model]) -> list[tuple[Model | None, str]]:
    """Return what ``readable`` returns for each of ``urls``, which are read at once. Raises StoreError."""
    contents = filesystem.read_many(urls)
    return [_readable(url, contents[url], kind) if url in contents else (None, "") for url in urls]


def _readable(url: str, data: bytes, kind: type[Model]) -> tuple[Model | None, str]:
    try:
        return _parsed(url, data, kind), ""
    except StoreError as error:
        return None, str(error)


def readable_record(url: str) -> tuple[Record | None, str]:
    """Return the record at ``url`` as ``readable`` does. Raises StoreError."""
    return readable(url, Record)


def read_record(url: str) -> Record | None:
    """Return the record at ``url``, or None. Raises StoreError."""
    return read_model(url, Record)


def read_failure(url: str) -> Failure | None:
    """Return the failure note at ``url``, or None. Raises StoreError."""
    return read_model(url, Failure)


def write_model(url: str, model: BaseModel) -> None:
    """Write a record, failure or plan atomically."""
    filesystem.write_bytes(url, (model.model_dump_json(indent=2) + "\n").encode())


def update_model(url: str, model: BaseModel) -> None:
    """Write a document atomically, unless the same is there."""
    data = (model.model_dump_json(indent=2) + "\n").encode()
    try:
        same = filesystem.read_bytes(url) == data
    except FileNotFoundError:
        same = False
    if not same:
        filesystem.write_bytes(url, data)
