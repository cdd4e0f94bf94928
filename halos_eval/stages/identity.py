"""The identity of a stage: everything that determines its scores, and the fingerprint of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import title_of
from halos_eval.digests import fingerprint
from halos_eval.stages import tools
from halos_eval.storage import filesystem
from halos_eval.storage.records import CheckpointRef, StageName

LOGIC: dict[StageName, int] = {"sample": 2, "judge": 3, "harness": 2}
"""Version of this project's own effect on each stage's scores. Raise it when a fixed bug has made records wrong."""

SWAPPED = 1
"""Added to the version of a judge that is asked in both orders: its flip rate had counted outputs that were cut."""
SERVER_PACKAGE = "vllm"
"""The tool of a judge's server, which runs beside the judge stage in another environment and checks its own version."""


class Identity(BaseModel):
    """Everything that determines the scores of one stage. Other options affect only where and how fast it runs."""

    model_config = FROZEN

    stage: StageName
    task: str | None = None
    checkpoint: CheckpointRef
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Digest or revision of each input that determines the scores."""
    packages: tuple[str, ...]
    """The pinned tools that determine the scores."""
    label: str | None = None
    """Name of a judge beside the suite's main judge, for titles and columns. It does not determine scores."""

    @property
    def title(self) -> str:
        """The name of the lm_eval task, or the stage; judge@LABEL for a judge beside the main one."""
        return title_of(self.stage, self.task, self.label)

    @property
    def own_packages(self) -> tuple[str, ...]:
        """The tools that the stage's own environment must have."""
        return tuple(one for one in self.packages if (self.stage, one) != ("judge", SERVER_PACKAGE))

    @property
    def definition(self) -> dict[str, Any]:
        """Everything that determines the scores except the versions of the tools."""
        return {
            "logic": LOGIC[self.stage] + (SWAPPED if self.stage == "judge" and self.settings.get("swap") else 0),
            "stage": self.stage,
            "task": self.task,
            "settings": self.settings,
            "inputs": self.inputs,
        }

    @property
    def document(self) -> dict[str, Any]:
        """The identity as it is kept in the record."""
        return self.document_with({package: tools.pinned(package) for package in self.packages})

    def document_with(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """Return the identity with other ``versions`` of the tools, by package."""
        return {**self.definition, "tools": {package: versions[package] for package in self.packages}}

    @property
    def fingerprint(self) -> str:
        """Digest of the document."""
        return fingerprint(self.document)

    def fingerprint_with(self, versions: Mapping[str, str]) -> str:
        """Return the fingerprint with other ``versions`` of the tools."""
        return fingerprint(self.document_with(versions))

    def of(self, checkpoint: CheckpointRef) -> Self:
        """Return the same stage on other weights."""
        inputs = self.inputs | ({"model": checkpoint.digest} if "model" in self.inputs else {})
        return self.model_copy(update={"checkpoint": checkpoint, "inputs": inputs})

    def on(self, outputs: str) -> Self:
        """Return the same judge stage on the outputs of the sample stage with the fingerprint ``outputs``."""
        return self.model_copy(update={"inputs": self.inputs | {"outputs": outputs}})

    def at(self, record: str) -> Job:
        """Return the job that writes its record to the URL ``record``."""
        return Job(**dict(self), record=record)


class Job(Identity):
    """One stage to run: its identity, and the URL of its record."""

    record: str
    """URL of the record."""

    def journal(self, parts: str, force: bool) -> str:
        """Return the journal's folder below ``parts``. A forced run has its own, so that a retry can resume it."""
        return filesystem.join(parts, self.fingerprint + (".again" if force else ""))
