"""The command that compares two checkpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg
from rich.table import Column, Table

from halos_eval.analysis.estimate import check_scipy
from halos_eval.config.policy import load_policy
from halos_eval.config.settings import FROZEN, Settings
from halos_eval.reports.compare import common_suite, compare
from halos_eval.reports.comparison import Comparison, TaskComparison, Verdict, write_comparison
from halos_eval.reports.terminal import PlainConsole

EXIT_CODES = {
    Verdict.BETTER: 0,
    Verdict.SAME: 20,
    Verdict.UNKNOWN: 21,
    Verdict.WORSE: 22,
    Verdict.NOT_COMPARABLE: 23,
}
"""Exit codes, apart from those of `halos_eval.errors`."""
TITLES = (
    "task", "metric", "items", "A", "B", "A - B", "95 %", "p", "could find", "better / worse", "verdict"
)  # fmt: skip
TEXTS = {"task", "metric", "verdict"}
NARROW = {"task", "A", "B", "A - B", "p", "verdict"}
"""Columns that a terminal of 80 characters has place for; `--json` has all."""
WIDE = 160
"""Characters from which on a terminal shows all columns."""


class CompareConfig(BaseModel):
    """Say whether checkpoint A is better than checkpoint B, over the same documents and prompts.

    Exit codes: 0 better, 20 no difference that matters, 21 not enough evidence, 22 worse, 23 not comparable; others as
    for all commands. It needs SciPy and statsmodels, which the judge's environment has.
    """

    model_config = FROZEN

    a: CliPositionalArg[str]
    """Name of the checkpoint in question."""
    b: CliPositionalArg[str]
    """Name of the checkpoint that it is compared with."""
    suite: str | None = None
    """Name of the suite (default: the only one that has evaluated both)."""
    margin: Annotated[float | None, Field(ge=0)] = None
    """Differences up to this do not matter; 0.01 is one percentage point (default: that of the policy file)."""
    store: str = Field(default_factory=lambda: Settings().store)
    """Folder or object storage with all results."""
    save: bool = False
    """Keep the comparison in the store, for the report."""
    json_output: Annotated[bool, Field(alias="json")] = False
    """Print all numbers and the ids of all changed items as JSON."""


def compare_checkpoints(config: CompareConfig) -> int:
    """Print the comparison and return the exit code of its verdict. Raise BadInput, StoreError."""
    check_scipy()
    margin = load_policy().margin if config.margin is None else config.margin
    suite = config.suite or common_suite(config.store, config.a, config.b)
    found = compare(config.store, suite, config.a, config.b, margin)
    if config.save:
        write_comparison(config.store, found)
    if config.json_output:
        print(found.model_dump_json(indent=2))
    else:
        show_comparison(found)
    return EXIT_CODES[found.verdict]


def show_comparison(found: Comparison) -> None:
    """Print a comparison as a table, with the items that changed most."""
    console = PlainConsole()
    shown = [title for title in TITLES if title in NARROW or console.width >= WIDE]
    columns = (Column(title, justify="left" if title in TEXTS else "right") for title in shown)
    table = Table(*columns, title=f"A {found.a}, B {found.b}")
    for one in found.tasks:
        cells = dict(zip(TITLES, _cells(one), strict=True))
        table.add_row(*(cells[title] for title in shown))
    console.print(table)
    for one in found.tasks:
        if one.reason:
            console.print(f"{one.task}: {one.reason}", soft_wrap=True)
    for flip in found.flips:
        console.print(
            f"{flip.task} {flip.id}: A {flip.a:g}, B {flip.b:g}\n  prompt: {flip.prompt}\n  reference: "
            f"{flip.reference}\n  A: {flip.answer_a}\n  B: {flip.answer_b}",
            soft_wrap=True,
        )
    console.print(f"{found.a} beside {found.b}: {sentence(found)}", soft_wrap=True)


def sentence(found: Comparison) -> str:
    """Return the verdict, with the tasks in which A is worse or better."""
    parts = [
        f"{verdict} in {', '.join(names)}"
        for verdict in (Verdict.WORSE, Verdict.BETTER)
        if (names := [one.task for one in found.tasks if one.verdict == verdict])
    ]
    return "; ".join(parts) or found.verdict


def _cells(one: TaskComparison) -> list[str]:
    if one.difference is None or one.low is None or one.high is None or one.detectable is None:
        return [one.task, one.metric, *[""] * 8, one.verdict]
    percent = one.task.startswith("alpaca_eval")
    digits = 2 if percent else 4
    return [
        one.task,
        one.metric,
        str(one.n) if one.clusters is None else f"{one.n} in {one.clusters}",
        f"{one.a:.{digits}f}",
        f"{one.b:.{digits}f}",
        f"{one.difference:+.{digits}f}",
        f"{one.low:+.{digits}f} to {one.high:+.{digits}f}",
        f"{one.p_holm:.2g}",
        f"{one.detectable:.{digits}f}",
        f"{len(one.better)} / {len(one.worse)}",
        one.verdict,
    ]
