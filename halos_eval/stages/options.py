"""The options that every stage has, and their form as a command line."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic_settings import CliPositionalArg, CliSuppress

from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput
from halos_eval.hub import switch_off
from halos_eval.storage.manifest import Manifest, read_manifest

(POSITIONAL,) = CliPositionalArg[str].__metadata__  # type: ignore[attr-defined]


class StageConfig(BaseModel):
    """Options that every stage has."""

    model_config = FROZEN

    name: str | None = None
    """Name of the checkpoint in records and tables (default: the last part of its path that is not FINAL)."""
    suite: str | None = None
    """Name of the suite that asks for this, for the record."""
    expect: CliSuppress[str | None] = None
    """Fingerprint that was planned: the stage refuses to run if it finds another one."""
    force: bool = False
    """Run although there is a finished record. If it is killed, the same command resumes it."""
    manifest: str | None = None
    """File or URL of the manifest that `halos-eval fetch` wrote: data and models come from the cache, as it pins them,
    with the hub switched off (default: from the hub)."""

    def load_manifest(self) -> Manifest | None:
        """The manifest that the stage is given, if any, with the hub switched off. Raises BadInput, StoreError."""
        if self.manifest is None:
            return None
        switch_off()
        found = read_manifest(self.manifest)
        if found is None:
            raise BadInput(f"--manifest {self.manifest}: there is none; `halos-eval fetch` writes it")
        return found

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


def is_positional(metadata: list[Any]) -> bool:
    """Whether a field is a positional argument of the command line."""
    return any(mark is POSITIONAL for mark in metadata)
