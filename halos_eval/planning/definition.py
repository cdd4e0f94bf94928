"""The definition of a suite: the identities of its stages, by the content of everything that it names.

Two definitions are equal if and only if they give the same scores for the same checkpoint. The table compares results
with the definition that the latest plan saved in the store; everything else compares with the suite as it is now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from halos_eval.checkpoints.judge_weights import judge_weights
from halos_eval.checkpoints.known import state_of
from halos_eval.checkpoints.registry import Metadata
from halos_eval.checkpoints.weights import Weights
from halos_eval.config.judge import load_judge
from halos_eval.config.served_judge import JudgeChoice, ServedJudge
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import AlpacaEvalSettings, Suite, TaskSettings, label_of
from halos_eval.digests import digest_file, digest_json
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.planning.chat import harness_of, sampling_of
from halos_eval.stages import tools
from halos_eval.stages.harness.options import harness_identity
from halos_eval.stages.identity import Identity
from halos_eval.stages.judge.options import SWAP, judge_identity
from halos_eval.stages.sample import sample_identity
from halos_eval.storage import layout
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef, read_model

ANY = CheckpointRef(name="", location="", digest="")
"""Stands for any checkpoint."""
PLAIN = Metadata()
UNKNOWN = ""
"""Stands for the digest of a part whose data is unavailable."""


class PartDefinition(BaseModel):
    """The stages of one part: sample and judge, or a harness task."""

    model_config = FROZEN

    identities: tuple[Identity, ...] = ()
    """Identity of each stage for a checkpoint without metadata; none if the data is unavailable."""
    metric: str | None = None
    """Metric for the column ``avg``; None: the first that lm_eval prints."""
    unavailable: str | None = None
    """Why this part cannot be planned: its data is unavailable, or one of its files is invalid."""

    @property
    def digest(self) -> str:
        """Digest of everything that determines the scores, except the checkpoint and the versions of the tools.

        Judges beside the main one are not part of it: one that is added does not change the others' results.
        """
        if not self.identities:
            return UNKNOWN
        own = [one for one in self.identities if one.label is None]
        return digest_json([(one.on("") if one.stage == "judge" else one).definition for one in own])

    @property
    def sampling(self) -> str:
        """Digest of what determines the sampled answers; UNKNOWN if nothing is sampled, or if it is unavailable."""
        return next((digest_json(one.definition) for one in self.identities if one.stage == "sample"), UNKNOWN)

    @property
    def judges(self) -> tuple[Identity, ...]:
        """Identities of the judge stages, the main judge first."""
        return tuple(one for one in self.identities if one.stage == "judge")


class SuiteDefinition(BaseModel):
    """The definition of a suite, as it is kept in the store."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    suite: str
    """Name of the suite."""
    parts: dict[str, PartDefinition]
    """Definitions by part: alpaca_eval and the tasks."""
    warn_above: float
    """The suite's threshold for warnings."""


class Definitions:
    """Identities of the stages of ``suite`` for many checkpoints. Files are read once for equal metadata."""

    def __init__(
        self, suite: Suite, manifest: Manifest | None = None, judge: str | None = None, root: str | None = None
    ) -> None:
        """``judge`` replaces the suite's judges. The store ``root`` keeps digests of the weights of served judges."""
        self.suite, self.manifest, self.judge, self.root = suite, manifest, judge, root
        self._known: dict[tuple[str, str], tuple[Identity, ...]] = {}
        self._weights: dict[ServedJudge, Weights] = {}

    @cached_property
    def document(self) -> SuiteDefinition:
        """The definition, without metadata of a checkpoint."""
        parts = {part: self._part(part) for part in self.suite.parts}
        return SuiteDefinition(suite=self.suite.name, parts=parts, warn_above=self.suite.warn_above)

    @cached_property
    def own(self) -> str:
        """Digest of the lab's own definitions: settings, judge, prompts, tasks. Data of the hub does not change it."""
        suite = self.suite
        parts: list[Any] = []
        for task, settings in suite.tasks.items():
            parts.append(harness_identity(task, settings.harness(), suite.include_path, None, ANY).definition)
        if alpaca := suite.alpaca_eval:
            files = [path for path in (alpaca.prompts, alpaca.reference) if Path(path).is_file()]
            parts += [alpaca.prompts, alpaca.reference, *(digest_file(Path(path)) for path in files)]
            parts.append(alpaca.sampling.counted)
            parts += [load_judge(one).inputs() for one in alpaca.judges] + ([SWAP] if alpaca.swap else [])
            for one in alpaca.judges:
                if isinstance(one, ServedJudge):
                    parts += [str(one), state_of([one.model])]
        return digest_json(parts)

    def _part(self, part: str) -> PartDefinition:
        settings = self.suite.settings_of(part)
        metric = settings.metric if isinstance(settings, TaskSettings) else None
        try:
            return PartDefinition(identities=self.identities(part, PLAIN, ANY), metric=metric)
        except (BadInput, DataUnavailable) as error:
            return PartDefinition(unavailable=str(error), metric=metric)

    def identities(self, part: str, metadata: Metadata, checkpoint: CheckpointRef) -> tuple[Identity, ...]:
        """Return the identities of a part's stages on a checkpoint, with the tools as they are pinned now.

        Raise BadInput, DataUnavailable.
        """
        key = part, metadata.model_dump_json(exclude={"profile", "tags"})
        if key not in self._known:
            self._known[key] = self._read(part, metadata)
        return chained([one.of(checkpoint) for one in self._known[key]], tools.versions())

    def _read(self, part: str, metadata: Metadata) -> tuple[Identity, ...]:
        if self.manifest:
            self.manifest.needs(part)
        settings = self.suite.settings_of(part)
        if isinstance(settings, AlpacaEvalSettings):
            return self._alpaca_eval(settings, metadata)
        template, stop = (metadata.chat_template, metadata.stop) if settings.apply_chat_template else (None, ())
        path = self.suite.include_path
        own = harness_of(settings, metadata)
        return (harness_identity(part, own, path, template, ANY, self.manifest, stop),)

    def _alpaca_eval(self, settings: AlpacaEvalSettings, metadata: Metadata) -> tuple[Identity, ...]:
        sampling = sampling_of(settings.sampling, metadata)
        sample = sample_identity(sampling, settings.prompts, metadata.chat_template, ANY, self.manifest)
        judges = [
            judge_identity(
                load_judge(one),
                settings.reference,
                sample.fingerprint,
                ANY,
                self.manifest,
                (one, self.served_weights(one)) if isinstance(one, ServedJudge) else None,
                settings.swap,
            ).model_copy(update={"label": label})
            for one, label in self.judges(settings)
        ]
        if len({one.fingerprint for one in judges}) < len(judges):
            raise BadInput(
                f"two judges of suite {self.suite.name} are the same: {', '.join(map(str, settings.judges))}. Their "
                "files differ at most in names and prices. Remove one"
            )
        return sample, *judges

    def judges(self, settings: AlpacaEvalSettings) -> list[tuple[JudgeChoice, str | None]]:
        """Return the judges to ask, each with its label; the suite's main judge, and one of no suite, have none."""
        own = [(one, label_of(one) if number else None) for number, one in enumerate(settings.judges)]
        if self.judge is None:
            return own
        return [next((pair for pair in own if pair[0] == self.judge), (self.judge, None))]

    def served_weights(self, judge: ServedJudge) -> Weights:
        """Return the weights of a judge that is served. Raise BadInput, DataUnavailable."""
        if judge not in self._weights:
            self._weights[judge] = judge_weights(judge, self.manifest, self.root)
        return self._weights[judge]


def chained(identities: Sequence[Identity], versions: Mapping[str, str]) -> tuple[Identity, ...]:
    """Return a part's identities for these versions of the tools: a judgement depends on the outputs it judges."""
    sampled = next((one.fingerprint_with(versions) for one in identities if one.stage == "sample"), None)
    return tuple(one.on(sampled) if one.stage == "judge" and sampled else one for one in identities)


def read_definition(root: str, suite: str) -> SuiteDefinition | None:
    """Return the definition of ``suite`` at its latest plan; None without one.

    Raise StoreError, because without it results that are not current look complete. The next plan replaces a damaged
    file.
    """
    return read_model(layout.definition_url(root, suite), SuiteDefinition)
