"""What determines the scores of a stage, and the fingerprint of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.digests import fingerprint
from halos_eval.stages import tools
from halos_eval.storage import filesystem
from halos_eval.storage.records import CheckpointRef, StageName

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
