"""Differences between a record and the definition of its stage, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from halos_eval.stages.identity import Identity
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, readable_record

LENGTH = 40  # characters of a value that are shown


JUDGE = "annotator"
"""Input with the digest of a judge."""
NAMES = {"model": "weights", JUDGE: "judge"}
"""Names of inputs that people know by another name."""


def newest_record(
    root: str, checkpoint: str, stage: str, task: str | None, judged_as: Identity | None = None
) -> tuple[str, Record] | None:
    """Return the newest record of a stage or task, whatever its fingerprint, and its URL. Skip damaged ones.

    With ``judged_as``, only records of this judge, in the same orders, because the scores of two judges differ.
    """
    parent = filesystem.join(layout.runs_url(root, checkpoint), f"{stage}.{task}" if task else stage)
    found = [(url, record) for url in filesystem.find(parent, layout.RECORD) if (record := readable_record(url)[0])]
    alike = [one for one in found if judged_as is None or same_judge(one[1], judged_as)]
    return max(alike, key=lambda one: one[1].provenance.ended, default=None)


def same_judge(record: Record, identity: Identity) -> bool:
    """Return whether a judge stage's record is of this judge, asked in the same orders."""
    return judged_as(record) == (identity.inputs.get(JUDGE), identity.settings)


def judged_as(record: Record) -> tuple[str | None, dict[str, Any]]:
    """Return what tells the judges of records apart: the judge's digest, and the orders in which it was asked."""
    return record.identity.get("inputs", {}).get(JUDGE), record.identity.get("settings", {})


def changes(old: Record, new: Identity, tools: bool = True, ignore: Collection[str] = ()) -> list[str]:
    """Return the differences between the identity of a record and ``new``, with the values of settings and tools.

    Inputs are only named, because their values are digests. Keys in ``ignore`` are not compared. There may be none if
    something is not compared.
    """
    found = []
    for part in ("settings", "inputs", "tools") if tools else ("settings", "inputs"):
        before, after = old.identity.get(part, {}), new.document[part]
        for key in sorted((before.keys() | after.keys()).difference(ignore)):
            if before.get(key) != after.get(key):
                values = f" {_short(before.get(key))} then, {_short(after.get(key))} now"
                found.append(NAMES.get(key, key) if part == "inputs" else key + values)
    if old.identity.get("logic") != new.definition["logic"]:
        found.append("the logic of halos-eval")
    return found


def other_tools(old: Record, versions: Mapping[str, str]) -> list[str]:
    """Return the tools with which a record was made, and that of its row's series, if their ``versions`` differ."""
    return [
        f"{tool} {version}, and {versions.get(tool)} in this row's series"
        for tool, version in sorted(old.identity.get("tools", {}).items())
        if version != versions.get(tool)
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LENGTH else f"{text[:LENGTH]}..."
