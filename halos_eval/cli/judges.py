"""The command that compares two judges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg
from rich.table import Column, Table

from halos_eval.analysis.agreement import Agreement
from halos_eval.analysis.estimate import Estimate, check_scipy
from halos_eval.config.settings import FROZEN, Settings
from halos_eval.config.suite import load_suite
from halos_eval.reports.judges import Change, Comparison, compare
from halos_eval.reports.terminal import PlainConsole

WIN_RATE = "alpacaeval_wr"


class JudgesConfig(BaseModel):
    """Compare the judges OLD and NEW over the checkpoints of a suite that both have judged.

    It prints their agreement, the difference of their win rates, whether the order of checkpoints stays the same, and
    what NEW would say of the checkpoints that only OLD has judged. The table is not changed. It needs SciPy, which the
    judge's environment has.
    """

    model_config = FROZEN

    old: CliPositionalArg[str]
    """Judge that has judged more checkpoints: its name in the suite, another judge's name, or a YAML file."""
    new: CliPositionalArg[str]
    """Judge that would replace it."""
    suite: str
    """Name or file of the suite."""
    store: str = Field(default_factory=lambda: Settings().store)
    """Folder or object storage with all results."""
    json_output: Annotated[bool, Field(alias="json")] = False
    """Print all numbers as JSON."""


def judges(config: JudgesConfig) -> None:
    """Print the comparison. Raise BadInput, StoreError."""
    check_scipy()
    found = compare(config.store, load_suite(config.suite), config.old, config.new)
    if config.json_output:
        print(found.model_dump_json(indent=2))
        return
    console = PlainConsole()
    console.print(_checkpoints(found))
    for line in _over_all(found):
        console.print(line, soft_wrap=True)
    for column, change in found.changes.items():
        if change.predictions:
            console.print(_predictions(found, column, change))
        elif found.only_old:
            console.print(f"{column}: no prediction: {change.no_prediction}", soft_wrap=True)


def _checkpoints(found: Comparison) -> Table:
    right = [Column(title, justify="right") for title in (found.old, found.new, "new - old", "kappa")]
    table = Table("checkpoint", *right, title=f"{found.suite}: win rate in percent, with intervals of 95 %")
    for one in found.checkpoints:
        table.add_row(
            one.checkpoint,
            _number(one.old.get(WIN_RATE)),
            _number(one.new.get(WIN_RATE)),
            _estimate(one.difference),
            _kappa(one.agreement),
        )
    return table


def _over_all(found: Comparison) -> Iterator[str]:
    if found.agreement:
        share = f"same winner in {found.agreement.same:.1%} of {found.agreement.pairs} pairs"
        yield f"agreement: kappa {_kappa(found.agreement)}, {share}"
    yield f"difference over all: {_estimate(found.difference)} (paired by prompt)"
    for column, change in found.changes.items():
        yield (
            f"{column}, {change.checkpoints} checkpoints: difference {_estimate(change.difference)}, "
            f"Kendall's tau {_estimate(change.kendall)}, Spearman's rho {_estimate(change.spearman)}"
        )


def _predictions(found: Comparison, column: str, change: Change) -> Table:
    table = Table(
        "checkpoint", Column(found.old, justify="right"), Column(f"{found.new}, predicted", justify="right"), "",
        title=f"{column}: prediction, not in the table",
    )  # fmt: skip
    for one in change.predictions:
        note = "outside of the known scores" if one.extrapolated else ""
        table.add_row(one.checkpoint, _number(one.old), _estimate(one.new), note)
    return table


def _kappa(found: Agreement | None) -> str:
    return _estimate(found.kappa if found else None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _estimate(found: Estimate | None) -> str:
    if found is None:
        return "unknown"
    if found.low is None or found.high is None:
        return f"{found.value:.2f} (no interval)"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
