"""Two judges about the same outputs: what changes if the one replaces the other.

Nothing of this enters the table. In particular, a prediction is no score.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from halos_eval.analysis.agreement import Agreement, agreement
from halos_eval.analysis.comparison import mean_difference, rank_correlation
from halos_eval.analysis.estimate import Estimate
from halos_eval.analysis.prediction import fit
from halos_eval.config.judge import load_judge
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, Suite, label_of
from halos_eval.errors import BadInput
from halos_eval.planning.changes import JUDGE, same_judge
from halos_eval.planning.definition import read_definition
from halos_eval.planning.plan import Plan
from halos_eval.planning.progress import READERS
from halos_eval.reports.items import annotations_of
from halos_eval.reports.results import Cell, cells_of_record
from halos_eval.stages.identity import Identity
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, readable, readable_record

COLUMNS = ("alpacaeval_lcwr", "alpacaeval_wr")
"""Scores to compare."""
Value = TypeVar("Value")


class Compared(BaseModel):
    """One checkpoint that both judges have judged."""

    model_config = FROZEN

    checkpoint: str
    """Its name."""
    old: dict[str, float]
    """Scores of the old judge in percent, by column."""
    new: dict[str, float]
    """Scores of the new judge."""
    difference: Estimate | None
    """Win rate of the new judge minus that of the old one, in percentage points; paired by prompt."""
    agreement: Agreement | None
    """Agreement about the winner of each prompt; equal outputs do not count."""


class Prediction(BaseModel):
    """A score that the new judge would give to a checkpoint that only the old one has judged."""

    model_config = FROZEN

    checkpoint: str
    """Its name."""
    old: float
    """Score of the old judge."""
    new: Estimate
    """Predicted score of the new judge, with the interval for one checkpoint."""
    extrapolated: bool
    """Whether the old score is outside of those from which the line was made: then do not rely on it."""


class Change(BaseModel):
    """One score, over the checkpoints for which both judges have it."""

    model_config = FROZEN

    checkpoints: int
    """Number of these checkpoints."""
    difference: Estimate | None
    """Mean of new minus old, paired by checkpoint."""
    kendall: Estimate | None
    """Kendall's tau of the checkpoints' order."""
    spearman: Estimate | None
    """Spearman's rho."""
    predictions: tuple[Prediction, ...] = ()
    """Predictions for the checkpoints that only the old judge has judged."""
    no_prediction: str | None = None
    """Why there are none."""


class Comparison(BaseModel):
    """Everything about a change from one judge to another."""

    model_config = FROZEN

    suite: str
    """Name of the suite."""
    old: str
    """Name of the judge."""
    new: str
    """Name of the judge that would replace it."""
    checkpoints: tuple[Compared, ...]
    """Checkpoints that both have judged."""
    only_old: tuple[str, ...]
    """Checkpoints that only the old judge has judged."""
    difference: Estimate | None
    """Mean difference of win rates over all these checkpoints, paired by prompt."""
    agreement: Agreement | None
    """Agreement over all these checkpoints; its interval is over prompts."""
    changes: dict[str, Change]
    """By column."""


class _Judged(NamedTuple):
    """A record of one judge."""

    url: str
    record: Record

    @property
    def of(self) -> tuple[Any, ...]:
        """What two records must share to be comparable: the outputs, and the version of alpaca_eval."""
        return self.record.provenance.inputs.get("outputs_sha256"), json.dumps(self.record.identity.get("tools"))


class _Checkpoint(NamedTuple):
    name: str
    old: _Judged | None
    new: _Judged | None
    """For the same outputs as ``old``."""


def compare(root: str, suite: Suite, old: str, new: str) -> Comparison:
    """Compare two judges over the checkpoints of ``suite`` in the store ``root``. Raise BadInput, StoreError.

    A judge is a name of the suite's judges, any other judge's name, or a file.
    """
    judges = {name: _identity(root, suite, name) for name in (old, new)}
    if judges[old].inputs[JUDGE] == judges[new].inputs[JUDGE]:
        raise BadInput(f"{old} and {new} are the same judge; expected two. Name another one")
    with ThreadPoolExecutor(READERS) as pool:
        names = [name for name in pool.map(_name, _plans(root, suite.name)) if name]
        found = list(pool.map(lambda name: _checkpoint(root, name, judges[old], judges[new]), names))
        both = [one for one in found if one.old and one.new]
        if not both:
            raise BadInput(_nothing_common(suite, old, new, found))
        pairs = list(pool.map(_pairs, both))
    return Comparison(
        suite=suite.name,
        old=old,
        new=new,
        checkpoints=tuple(map(_compared, both, pairs)),
        only_old=tuple(one.name for one in found if one.old and not one.new),
        difference=mean_difference(_by_prompt([_differences(one) for one in pairs])),
        agreement=agreement(_by_prompt([_asked(one) for one in pairs])),
        changes={column: change for column in COLUMNS if (change := _change(column, found))},
    )


def _identity(root: str, suite: Suite, name: str) -> Identity:
    """Return the identity that a judge's records have in the suite's latest definition."""
    if suite.alpaca_eval is None:
        raise BadInput(f"suite {suite.name} has no {ALPACA_EVAL}, so nobody judges it. Name another suite")
    choices = {label_of(one): one for one in suite.alpaca_eval.judges}
    digest = load_judge(choices.get(name, name)).inputs()
    definition = read_definition(root, suite.name)
    usual = definition.parts[ALPACA_EVAL].judges if definition and ALPACA_EVAL in definition.parts else ()
    if not usual:
        raise BadInput(f"{root} has no results of {suite.name}'s judges. Evaluate a checkpoint first")
    return usual[0].model_copy(update={"inputs": usual[0].inputs | digest})


def _plans(root: str, suite: str) -> list[str]:
    return filesystem.find(filesystem.join(layout.plans_url(root), suite), ".json")


def _name(url: str) -> str | None:
    plan, _ = readable(url, Plan)
    return plan.checkpoint.name if plan else None


def _checkpoint(root: str, name: str, old: Identity, new: Identity) -> _Checkpoint:
    """Return the newest records of both judges for the same outputs; without any, the newest of the old judge."""
    folder = filesystem.join(layout.runs_url(root, name), "judge")
    read = [(url, readable_record(url)[0]) for url in filesystem.find(folder, layout.RECORD)]
    newest = sorted(
        (_Judged(url, record) for url, record in read if record),
        key=lambda one: one.record.provenance.ended,
        reverse=True,
    )
    ours = [one for one in newest if _is_of(one.record, old)]
    theirs = {one.of: one for one in reversed(newest) if _is_of(one.record, new)}
    common = next((one for one in ours if one.of in theirs), None)
    if common:
        return _Checkpoint(name, common, theirs[common.of])
    return _Checkpoint(name, next(iter(ours), None), None)


def _is_of(record: Record, judge: Identity) -> bool:
    """Return whether a record is of this judge, with the same reference and data for length control."""
    inputs = record.identity.get("inputs", {})
    return same_judge(record, judge) and all(
        inputs.get(key) == value for key, value in judge.inputs.items() if key != "outputs"
    )


def _nothing_common(suite: Suite, old: str, new: str, found: Iterable[_Checkpoint]) -> str:
    count = sum(one.old is not None for one in found)
    return (
        f"no checkpoint of {suite.name} has been judged by both {old} and {new}, as they are defined now, for the same "
        f"outputs ({count} by {old}). Give the suite both, as judge: [{old}, {new}], and evaluate some checkpoints"
    )


class _Pair(NamedTuple):
    """What both judges prefer in one pair of outputs."""

    equal: bool
    """Whether the outputs are equal, so that nobody was asked."""
    old: float
    new: float


def _pairs(one: _Checkpoint) -> dict[str, _Pair]:
    """Return the pairs that both judges have read, by instruction."""
    old, new = ({row["instruction"]: row for row in annotations_of(*judged)} for judged in (one.old, one.new) if judged)
    return {
        text: _Pair(row["output_1"] == row["output_2"], row["preference"], new[text]["preference"])
        for text, row in old.items()
        if row["preference"] is not None and text in new and new[text]["preference"] is not None
    }


def _differences(pairs: Mapping[str, _Pair]) -> dict[str, float]:
    """Return new minus old in percentage points of the win rate, by instruction."""
    return {text: 100 * (pair.new - pair.old) for text, pair in pairs.items()}


def _asked(pairs: Mapping[str, _Pair]) -> dict[str, tuple[float, float]]:
    return {text: (pair.old, pair.new) for text, pair in pairs.items() if not pair.equal}


def _by_prompt(checkpoints: Iterable[Mapping[str, Value]]) -> list[list[Value]]:
    """Return the values of all checkpoints for each prompt."""
    found: dict[str, list[Value]] = {}
    for one in checkpoints:
        for text, value in one.items():
            found.setdefault(text, []).append(value)
    return list(found.values())


def _compared(one: _Checkpoint, pairs: Mapping[str, _Pair]) -> Compared:
    return Compared(
        checkpoint=one.name,
        old=_scores(one.old),
        new=_scores(one.new),
        difference=mean_difference([[value] for value in _differences(pairs).values()]),
        agreement=agreement([[pair] for pair in _asked(pairs).values()]),
    )


def _scores(judged: _Judged | None) -> dict[str, float]:
    cells: Mapping[str, Cell] = cells_of_record(judged.record) if judged else {}
    return {column: cells[column].value for column in COLUMNS if column in cells}


def _change(column: str, found: Sequence[_Checkpoint]) -> Change | None:
    """Return what changes in one score; None if no checkpoint has it from both judges."""
    scores = [(one.name, _scores(one.old).get(column), _scores(one.new).get(column)) for one in found]
    known = [(old, new) for _, old, new in scores if old is not None and new is not None]
    if not known:
        return None
    before, after = ([pair[side] for pair in known] for side in (0, 1))
    line = fit(before, after)
    only = [(name, old) for name, old, new in scores if old is not None and new is None]
    return Change(
        checkpoints=len(known),
        difference=mean_difference([[new - old] for old, new in known]),
        kendall=rank_correlation(before, after, "kendall"),
        spearman=rank_correlation(before, after, "spearman"),
        no_prediction=line if isinstance(line, str) else None,
        predictions=()
        if isinstance(line, str)
        else tuple(
            Prediction(checkpoint=name, old=old, new=line.at(old), extrapolated=not line.within(old))
            for name, old in only
        ),
    )
