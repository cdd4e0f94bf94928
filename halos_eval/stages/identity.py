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
"""Version of what this project itself does to a score. Raise it when a fixed bug has made records wrong."""


class Identity(BaseModel):
    """All that determines the scores of one stage. Other options say only where it runs, or how fast."""

    model_config = FROZEN

    stage: StageName
    task: str | None = None
    checkpoint: CheckpointRef
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Digest or revision of everything that determines the scores besides the settings."""
    packages: tuple[str, ...]
    """The pinned tools that determine the scores."""

    @property
    def document(self) -> dict[str, Any]:
        """As the record keeps it."""
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
        """Digest of the document."""
        return fingerprint(self.document)

    def at(self, record: str) -> Job:
        """Return the job that leaves its record at the URL ``record``."""
        return Job(**dict(self), record=record)


class Job(Identity):
    """One stage to be run: its identity, and where its record goes."""

    record: str
    """URL of the record."""

    def journal(self, parts: str, force: bool) -> str:
        """The folder below ``parts`` for what is finished. A forced run has its own, so that a retry can resume it."""
        return filesystem.join(parts, self.fingerprint + (".again" if force else ""))
