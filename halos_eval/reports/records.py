"""The table of a folder of records without a suite: one row for each model that the records name.

The rows depend on the records alone, not on the order in which they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from halos_eval.checkpoints.weights import short_name
from halos_eval.config.suite import WARN_ABOVE, label_of
from halos_eval.digests import digest_json
from halos_eval.planning.changes import JUDGE
from halos_eval.reports.names import Known, candidates, clean, distinct, match
from halos_eval.reports.remarks import answered_as, counts_of, limit_of, trial_of, warnings_of
from halos_eval.reports.results import (
    Missing,
    Row,
    average,
    beside,
    cells_of_record,
    joined,
    judge_of,
    labelled,
    shortfalls,
    warnings_beside,
)
from halos_eval.stages.judge.options import SWAP
from halos_eval.storage.records import Record

Parts = dict[tuple[str, str], Record]
"""The record that is shown for each stage and task; for each judge and reference, see `_part`."""


class _Model(NamedTuple):
    """What a record says that its model is."""

    location: str
    digest: str


def rows_of_records(records: Iterable[Record]) -> list[Row]:
    """Return one row per model, sorted by name: the location's newest weights, with the best record of each part.

    A full run is better than a trial, and then a newer record than an older one.
    """
    # The whole text makes the order total. Later sorts are stable, so they keep it.
    models = _by_model(sorted(records, key=lambda record: (*_quality(record), record.model_dump_json())))
    parts = {model: _best(found) for model, found in models.items()}
    names = {model: _names(found, model.location) for model, found in models.items()}
    tasks = sorted({task for best in parts.values() for stage, task in best if stage == "harness"})
    limits = {task: _widest(parts.values(), task) for task in tasks}
    labels = _labels(parts.values())
    rows = [_row(name, parts[model], models[model], limits, labels) for model, name in distinct(names).items()]
    return sorted(rows, key=lambda row: row.checkpoint)


def _quality(record: Record) -> tuple[Any, ...]:
    """Return the sort key of records of one part; the last is shown."""
    limit = limit_of(record)
    return limit is None, limit or 0, record.provenance.ended


def _by_model(records: Sequence[Record]) -> dict[_Model, list[Record]]:
    """Return the records by model, without those of older weights at the same location.

    Judged outputs without a record of the sample stage have the file's location and digest instead of the model's, and
    the generator as the name. They belong to the model that it names, if that is one model.
    """
    models: dict[_Model, list[Record]] = {}
    files: dict[_Model, list[Record]] = {}
    for record in records:
        reference = record.checkpoint
        unsampled = record.identity.get("inputs", {}).get("outputs") == reference.digest
        group = files if unsampled else models
        group.setdefault(_Model(clean(reference.location), reference.digest), []).append(record)
    known = {model: Known(_name(found), model.location) for model, found in models.items()}
    models = _newest(models, _revision)
    for file, found in _newest(files, _generator).items():
        model = match(_generator(_latest(found)), known)
        if model in models:
            models[model] = sorted(models[model] + found, key=_quality)
        else:
            models[file] = found
    return models


def _generator(record: Record) -> str:
    """Return how the user (--name) or else the outputs name their model. Older records have it only as the name."""
    provenance = record.provenance
    return str(provenance.config.get("name") or provenance.inputs.get("generator") or record.checkpoint.name)


def _revision(record: Record) -> str:
    """Return the revision of a hub repository that was evaluated. Each is a model of its own, not older weights."""
    return str(record.provenance.config.get("revision") or "")


def _newest(models: Mapping[_Model, list[Record]], variant: Callable[[Record], str]) -> dict[_Model, list[Record]]:
    """Return the models that have the newest content of their location, for each ``variant`` of it."""
    newest: dict[tuple[str, str], _Model] = {}
    for model in sorted(models, key=lambda model: (_latest(models[model]).provenance.ended, model.digest)):
        newest[model.location, variant(_latest(models[model]))] = model
    return {model: models[model] for model in newest.values()}


def _latest(found: Sequence[Record]) -> Record:
    return max(found, key=lambda record: (record.provenance.ended, record.checkpoint.name))


def _names(found: Sequence[Record], location: str) -> list[str]:
    """Return the names of a model from short to long, see `distinct`."""
    name, revision = _name(found), _revision(_latest(found))
    names = candidates(name, location)
    return [name, *(f"{one}@{revision}" for one in names)] if revision else names


def _name(found: Sequence[Record]) -> str:
    name = _latest(found).checkpoint.name
    # The generator of judged outputs may be a path. Names of checkpoints may contain a slash, but do not start with it.
    return short_name(name) if name.startswith("/") or "://" in name else name


def _best(found: Sequence[Record]) -> Parts:
    """Return the last record of each part, and the sample stage whose outputs were judged last."""
    best = {_part(record): record for record in found}
    if judged := next((record for record in reversed(found) if record.stage == "judge"), None):
        outputs = judged.identity.get("inputs", {}).get("outputs")
        best.pop(("sample", ""), None)
        for one in found:
            if one.stage == "sample" and one.fingerprint == outputs:
                best["sample", ""] = one
    return dict(sorted(best.items(), key=lambda item: _quality(item[1]), reverse=True))


def _part(record: Record) -> tuple[str, str]:
    """Return the stage with the task, or with what makes win rates comparable: judge, orders and reference."""
    if record.stage != "judge":
        return record.stage, record.task or ""
    swapped = "swapped " if _swapped(record) else ""
    judge = record.identity.get("inputs", {}).get(JUDGE) or judge_of(record) or ""
    return "judge", f"{swapped}{judge} {_reference(record)}"


def _swapped(record: Record) -> bool:
    return bool(record.identity.get("settings", {}).get(SWAP))


def _reference(record: Record) -> str:
    """Return the digest of the outputs with which a judge compared."""
    return str(record.identity.get("inputs", {}).get("reference") or "")


def _labels(rows: Collection[Parts]) -> dict[str, str | None]:
    """Return the label of the columns of each judge and reference; None for those of most models, then the newest."""
    records: dict[str, list[Record]] = {}
    for best in rows:
        for (stage, judged), record in best.items():
            if stage == "judge":
                records.setdefault(judged, []).append(record)
    latest = {judged: _latest(found) for judged, found in records.items()}
    usual = max(records, key=lambda judged: (len(records[judged]), latest[judged].provenance.ended, judged), default="")
    labels: dict[str, str | None] = {usual: None}
    for judged in sorted(records.keys() - {usual}):
        name = _label(latest[judged], latest[usual])
        labels[judged] = f"{name}-{digest_json(judged)[:6]}" if name in labels.values() else name
    return labels


def _label(record: Record, usual: Record) -> str:
    """Return the name of a judge, with the reference if it is not that of the ``usual`` columns."""
    config = record.provenance.config
    name = label_of(str(config.get("judge") or judge_of(record) or "other"))
    name += "-swapped" if _swapped(record) else ""
    if _reference(record) == _reference(usual):
        return name
    reference = label_of(str(config.get("reference") or _reference(record)[:6] or "unknown"))
    return f"{name}-against-{reference.removesuffix('.json')}"


def _widest(rows: Iterable[Parts], task: str) -> int | float | None:
    """Return the highest limit of ``task`` in all rows; None if it ran in full."""
    limits = [limit_of(best["harness", task]) for best in rows if ("harness", task) in best]
    return None if None in limits else max(limit for limit in limits if limit)


def _row(
    name: str,
    best: Parts,
    found: Sequence[Record],
    limits: Mapping[str, int | float | None],
    labels: Mapping[str, str | None],
) -> Row:
    further = {
        label: record for (stage, judge), record in best.items() if stage == "judge" and (label := labels[judge])
    }
    records = [record for (stage, judge), record in best.items() if stage != "judge" or labels[judge] is None]
    cells, clashes = joined(records)
    missing = [shortfall for record in records for shortfall in shortfalls(record)]
    for label, record in further.items():
        missing += [Missing(labelled(one.what, label), one.reason) for one in shortfalls(record)]
    missing += [Missing(task, "no record") for task in limits if ("harness", task) not in best]
    narrow = [
        task for task, limit in limits.items() if ("harness", task) in best and limit_of(best["harness", task]) != limit
    ]
    missing += [Missing("avg", f"other rows have more documents of {task}") for task in narrow]
    mean = None if clashes or narrow else average([(best.get(("harness", task)), None) for task in limits])
    judges = (judge for record in records if (judge := judge_of(record)))
    return Row(
        name,
        dict(sorted((cells | beside(further, cells_of_record)).items())),
        next(judges, None),
        judge_versions=tuple(version for record in records for version in answered_as(record)),
        average=mean.value if mean else None,
        average_stderr=mean.stderr if mean else None,
        missing=(*missing, *clashes),
        trial=trial_of(records),
        warnings=(
            *warnings_of(records, WARN_ABOVE),
            *warnings_beside(further, WARN_ABOVE),
            *_not_shown(best, found),
        ),
        counts=counts_of(records) | beside(further, lambda record: counts_of([record])),
        judges={label: model for label, record in further.items() if (model := judge_of(record))},
    )


def _not_shown(best: Parts, found: Sequence[Record]) -> list[str]:
    """Return a warning for each part of which another record, with the same number of documents, has other scores."""
    others: dict[str, set[str]] = {}
    for record in found:
        shown = best.get(_part(record))
        if shown is None or limit_of(shown) != limit_of(record):
            continue
        mine, theirs = cells_of_record(shown), cells_of_record(record)
        if mine != theirs:
            others.setdefault(record.task or "alpacaeval", set()).add(_difference(shown, record))
    return [
        f"{part}: not shown: an older record, {why}" for part, whys in sorted(others.items()) for why in sorted(whys)
    ]


def _difference(shown: Record, other: Record) -> str:
    """Return in words how the settings of ``other``, which has other scores, differ."""
    mine, theirs = (one.identity.get("settings", {}) for one in (shown, other))
    changed = [f"{key}={theirs.get(key)}" for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    if changed:
        return f"with {', '.join(changed)}"
    return "with the same settings" if shown.fingerprint == other.fingerprint else "with other inputs or tools"
