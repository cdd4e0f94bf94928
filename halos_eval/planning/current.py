"""Which stages of a suite are current for a checkpoint: the one comparison of results with definitions.

A stage is current if the store has its record for the identity that it has now. Versions of tools are the exception:
results that are complete with earlier versions stay current, as an earlier series.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from halos_eval.planning.definition import chained
from halos_eval.stages.identity import Identity
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, readable_record
from halos_eval.storage.series import AllSeries, Series


class Stage(NamedTuple):
    """One stage of a part on a checkpoint, in one series."""

    part: str
    identity: Identity
    fingerprint: str

    @property
    def title(self) -> str:
        """The name of the lm_eval task, or the stage; judge@LABEL for a judge beside the main one."""
        return self.identity.title

    @property
    def tail(self) -> str:
        """Path of its record in the checkpoint's folder of results."""
        return layout.record_tail(self.identity.stage, self.identity.task, self.fingerprint)


class Standing(NamedTuple):
    """The stages of a suite on a checkpoint, in the series in which most of them are done."""

    series: Series
    stages: tuple[Stage, ...]
    done: frozenset[str]
    """Titles of the stages that have a record."""
    failed: frozenset[str]
    """Titles of the stages that have a failure note."""


def standing(
    parts: Mapping[str, Sequence[Identity]], files: Collection[str], series: AllSeries, only: Series | None = None
) -> Standing:
    """Return the standing in the series with the most finished stages, the newest of those; or in ``only`` this one.

    ``files`` are paths in the checkpoint's folder of results. Records are not read.
    """
    candidates = [only] if only else list(series.series)
    found = [_in_series(parts, files, one) for one in candidates]
    return max(found, key=lambda one: (len(one.done), one.series.number))


def _in_series(parts: Mapping[str, Sequence[Identity]], files: Collection[str], series: Series) -> Standing:
    stages = tuple(
        Stage(part, one, one.fingerprint_with(series.tools))
        for part, identities in parts.items()
        for one in chained(identities, series.tools)
    )
    done = frozenset(one.title for one in stages if one.tail in files)
    notes = frozenset(one.title for one in stages if layout.failure_beside(one.tail) in files)
    return Standing(series, stages, done, notes - done)


def files_of(root: str, checkpoint: str) -> frozenset[str]:
    """Return the paths of the JSON files in the checkpoint's folder of results. Raise StoreError."""
    return frozenset(
        "/".join(url.rsplit("/", 3)[1:]) for url in filesystem.find(layout.runs_url(root, checkpoint), ".json")
    )


def judged_again(root: str, checkpoint: str, found: Standing) -> frozenset[str]:
    """Return the titles of the judgements that are not for the outputs that the sample stage has now."""
    done = [one for one in found.stages if one.title in found.done]
    judges = [one for one in done if one.identity.stage == "judge"]
    sampled = next((one.tail for one in done if one.identity.stage == "sample"), None)
    record = _record(root, checkpoint, sampled) if judges and sampled else None
    outputs = record.files.values() if record else ()
    return frozenset(one.title for one in judges if _judged_outputs(root, checkpoint, one) not in outputs)


def _judged_outputs(root: str, checkpoint: str, stage: Stage) -> str | None:
    record = _record(root, checkpoint, stage.tail)
    return record.provenance.inputs.get("outputs_sha256") if record else None


def _record(root: str, checkpoint: str, tail: str) -> Record | None:
    return readable_record(filesystem.join(layout.runs_url(root, checkpoint), tail))[0]
