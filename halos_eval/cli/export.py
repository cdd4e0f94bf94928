"""The command that writes results for other programs."""

from __future__ import annotations

import json

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from halos_eval.config.settings import FROZEN, Settings
from halos_eval.exporters.every_eval_ever import documents
from halos_eval.storage import filesystem


class ExportConfig(BaseModel):
    """Write the current results of a suite in the schema of Every Eval Ever 0.3.0, one file for each part."""

    model_config = FROZEN

    suite: CliPositionalArg[str] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of the suite."""
    organization: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Organization that made and evaluated the checkpoints; a checkpoint is called ORGANIZATION/NAME."""
    output: str = "export"
    """Folder or URL; the files are in its folder data/."""
    store: str = Field(default_factory=lambda: Settings().store)
    """Folder or object storage with all results."""


def export(config: ExportConfig) -> None:
    """Write the files and print their number. Raise BadInput, StoreError."""
    count = 0
    for path, document in documents(config.store, config.suite, config.organization):
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        filesystem.write_bytes(filesystem.join(config.output, path), f"{text}\n".encode())
        count += 1
    print(f"{count} results: {filesystem.join(config.output, 'data')}")
