"""The options that all stages share, and how they are written as a command line."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic_settings import CliPositionalArg, CliSuppress

from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput
from halos_eval.hub import switch_off
from halos_eval.storage.manifest import Manifest, read_manifest

LONGEST_ARGUMENT = 131_071
"""Bytes of one argument that Linux takes (MAX_ARG_STRLEN)."""
(POSITIONAL,) = CliPositionalArg[str].__metadata__  # type: ignore[attr-defined]


class StageConfig(BaseModel):
    """Options that all stages share."""

    model_config = FROZEN

    name: str | None = None
    """Name of the checkpoint in records and tables (default: the last part of its path that is not FINAL)."""
    suite: str | None = None
    """Name of the suite that requests this stage, for the record."""
    expect: CliSuppress[str | None] = None
    """Planned fingerprint: the stage refuses to run if its own differs."""
    owner: CliSuppress[str | None] = None
    """Task of Airflow that runs this stage: its retry goes on at once (default: this process)."""
    force: bool = False
    """Run even if a finished record exists. If the run is killed, the same command resumes it."""
    manifest: str | None = None
    """File or URL of the manifest that `halos-eval fetch` wrote: data and models are read from the cache at the commits
    that it pins, with the hub switched off (default: from the hub)."""

    def load_manifest(self) -> Manifest | None:
        """Return the manifest with the hub switched off, see ``load_manifest``."""
        return load_manifest(self.manifest)

    def argv(self) -> list[str]:
        """Return the arguments for a command line, see ``argv_of``."""
        return argv_of(self)


def load_manifest(url: str | None) -> Manifest | None:
    """Switch the hub off and return the manifest at ``url``; None without one. Raise BadInput, StoreError."""
    if url is None:
        return None
    switch_off()
    found = read_manifest(url)
    if found is None:
        raise BadInput(f"--manifest {url} not found. Run `halos-eval fetch`, which writes it")
    return found


def argv_of(config: BaseModel) -> list[str]:
    """Return the arguments for a command line: options that differ from their defaults, then the positional one.

    ``--`` comes before the positional argument, so that a value that starts with a dash is not read as an option. Raise
    BadInput for a value that no command line can have.
    """
    words: list[str] = []
    positional: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value is None or (not field.is_required() and value == field.default):
            continue
        if is_positional(field.metadata):
            positional.append(str(value))
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple | dict):
            words.append(f"--{option}={json.dumps(value)}")  # commas in an item would split it otherwise
        else:
            words.append(f"--{option}={value}")
    return list(map(_passable, [*words, "--", *positional]))


def _passable(word: str) -> str:
    """Return an argument. Raise BadInput for one that no program can be started with."""
    size = len(word.encode(errors="surrogatepass"))
    if "\0" in word or size > LONGEST_ARGUMENT:
        what = "a NUL character" if "\0" in word else f"{size} bytes"
        raise BadInput(
            f"the argument {word[:60]!r} has {what}; expected at most {LONGEST_ARGUMENT} bytes without NUL. Correct "
            "this value in the suite, or in the checkpoint's metadata"
        )
    return word


class ModelConfig(StageConfig):
    """Options of the stages that load a model."""

    model: CliPositionalArg[str]
    """Folder or s3:// URL of a checkpoint or of a LoRA adapter, or NAMESPACE/NAME on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    location: CliSuppress[str | None] = None
    """URL of the checkpoint if MODEL is its copy in the cache."""
    known: CliSuppress[tuple[str, ...]] = ()
    """Digests that the plan has computed, see `halos_eval.checkpoints.known.Carried`."""
    root: CliSuppress[str | None] = None
    """Folder of the registry, into which links of a checkpoint may lead (default: its own folder only)."""


def is_positional(metadata: list[Any]) -> bool:
    """Return whether a field is a positional argument of the command line."""
    return any(mark is POSITIONAL for mark in metadata)
