"""The table of a folder of records without a suite: one row for each model that the records name.

The rows depend on the records alone, not on the order in which they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from halos_eval.checkpoints.weights import short_name
from halos_eval.config.suite import WARN_ABOVE
from halos_eval.reports.names import Known, candidates, clean, distinct, match
from halos_eval.reports.remarks import answered_as, counts_of, limit_of, trial_of, warnings_of
from halos_eval.reports.results import Missing, Row, average, cells_of_record, joined, judge_of, shortfalls
from halos_eval.storage.records import Record

Parts = dict[tuple[str, str], Record]
"""The record that is shown for each stage and task."""


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
    rows = [_row(name, parts[model], models[model], limits) for model, name in distinct(names).items()]
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
    """Return the last record of each part, and the sample stage whose outputs were judged."""
    best = {(record.stage, record.task or ""): record for record in found}
    if judged := best.get(("judge", "")):
        outputs = judged.identity.get("inputs", {}).get("outputs")
        best.pop(("sample", ""), None)
        for one in found:
            if one.stage == "sample" and one.fingerprint == outputs:
                best["sample", ""] = one
    return dict(sorted(best.items(), key=lambda item: _quality(item[1]), reverse=True))


def _widest(rows: Iterable[Parts], task: str) -> int | None:
    """Return the highest limit of ``task`` in all rows; None if it ran in full."""
    limits = [limit_of(best["harness", task]) for best in rows if ("harness", task) in best]
    return None if None in limits else max(limit for limit in limits if limit)


def _row(name: str, best: Parts, found: Sequence[Record], limits: Mapping[str, int | None]) -> Row:
    records = list(best.values())
    cells, clashes = joined(records)
    missing = [shortfall for record in records for shortfall in shortfalls(record)]
    missing += [Missing(task, "no record") for task in limits if ("harness", task) not in best]
    narrow = [
        task for task, limit in limits.items() if ("harness", task) in best and limit_of(best["harness", task]) != limit
    ]
    missing += [Missing("avg", f"other rows have more documents of {task}") for task in narrow]
    mean = None if clashes or narrow else average([(best.get(("harness", task)), None) for task in limits])
    judges = (judge for record in records if (judge := judge_of(record)))
    return Row(
        name,
        dict(sorted(cells.items())),
        next(judges, None),
        judge_versions=tuple(version for record in records for version in answered_as(record)),
        average=mean.value if mean else None,
        average_stderr=mean.stderr if mean else None,
        missing=(*missing, *clashes),
        trial=trial_of(records),
        warnings=(*warnings_of(records, WARN_ABOVE), *_not_shown(best, found)),
        counts=counts_of(records),
    )


def _not_shown(best: Parts, found: Sequence[Record]) -> list[str]:
    """Return a warning for each part of which another record, with the same number of documents, has other scores."""
    others: dict[str, set[str]] = {}
    for record in found:
        shown = best.get((record.stage, record.task or ""))
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
    if judge_of(shown) != judge_of(other):
        return f"judged by {judge_of(other)}"
    mine, theirs = (one.identity.get("settings", {}) for one in (shown, other))
    changed = [f"{key}={theirs.get(key)}" for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    if changed:
        return f"with {', '.join(changed)}"
    return "with the same settings" if shown.fingerprint == other.fingerprint else "with other inputs or tools"
