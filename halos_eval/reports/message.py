"""Compose the morning message: what is new, what failed and why, in Markdown that is short on every night."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput, StoreError
from halos_eval.planning.plan import read_plan
from halos_eval.planning.selection import Evaluation, Selection
from halos_eval.reports.markdown import code, first, number, table
from halos_eval.reports.results import Cell, Row, row_of_plan
from halos_eval.reports.table import COMPLETE
from halos_eval.storage import layout

ROWS, REASONS, NAMES = 20, 10, 5
"""At most so many rows, reasons, and names for a reason: the table in the store has them all."""
# Airflow's states of a run that has not ended.
PENDING = {"queued", "running"}


class Message(BaseModel):
    """The morning message."""

    model_config = FROZEN

    title: str
    """One line: the outcome in numbers."""
    body: str
    """Markdown that reads well as plain text as well. Words of others stand in code spans."""
    failed: bool
    """Whether somebody has to look: something failed, or nobody knows how it ended."""


@dataclass(frozen=True)
class _Outcome:
    """How one evaluation ended."""

    evaluation: Evaluation
    state: str
    """success, pending, unknown, or failed, as has what cannot be read from the store."""
    row: Row | None = None
    """Its row of the table; None where there is none."""
    troubles: tuple[str, ...] = ()
    """Missing parts, each with its reason, as code spans or as text of this module."""

    @property
    def name(self) -> str:
        """The evaluation, and where it failed the run whose log tells more."""
        run = f", run {code(self.evaluation.run_id)}" if self.state in {"failed", "unknown"} else ""
        return f"{code(self.evaluation.checkpoint)} ({code(self.evaluation.suite)}{run})"

    @property
    def status(self) -> str:
        """One word or two for the table."""
        missing = [f"{len(self.troubles)} missing"] if self.troubles and self.row else []
        return ", ".join(([] if self.state == "success" else [self.state]) + missing) or COMPLETE

    def cells(self) -> list[str]:
        """The row of the table."""
        cells = self.row.cells if self.row else {}
        average = Cell(self.row.average) if self.row and self.row.average is not None else None
        return [
            code(self.evaluation.checkpoint),
            code(self.evaluation.suite),
            number(cells.get("alpacaeval_lcwr"), 2),
            number(cells.get("alpacaeval_wr"), 2),
            number(average, 4),
            self.status,
        ]


def compose(title: str, selection: Selection | None, states: dict[str, str], root: str) -> Message:
    """The message about what was selected; ``selection`` is None where finding that out failed.

    ``title`` names the night. ``states`` has Airflow's state of each run by its run_id; ``root`` is the store.
    """
    if selection is None:
        return Message(
            title=f"{title}: failed, nothing was started",
            body="What there is to evaluate could not be found out, so nothing was started. The log of the task `find` "
            "tells why: is the registry reachable, and is the policy file in order?\n",
            failed=True,
        )
    outcomes = [_outcome(evaluation, states, root) for evaluation in selection.evaluations]
    counts = _counts(outcomes, selection)
    parts = [f"**{counts.capitalize()}.** {len(selection.complete)} had been evaluated before."]
    parts += _new(outcomes)
    parts += _by_reason("**Failed or missing, and why**", ((one.name, why) for one in outcomes for why in one.troubles))
    parts += _pending(outcomes)
    parts += _by_reason("**Left out, and why**", ((code(name), code(why)) for name, why in selection.left_out.items()))
    suites = dict.fromkeys(evaluation.suite for evaluation in selection.evaluations)
    if suites:
        parts.append(
            f"The whole table: {first([code(layout.report_url(root, suite), 1000) for suite in suites], NAMES)}"
        )
    failed = any(outcome.state in {"failed", "unknown"} for outcome in outcomes)
    return Message(title=f"{title}: {counts}", body="\n\n".join(parts) + "\n", failed=failed)


def _outcome(evaluation: Evaluation, states: dict[str, str], root: str) -> _Outcome:
    state = states.get(evaluation.run_id, "unknown")
    if state in PENDING:
        return _Outcome(evaluation, "pending")
    if state not in {"success", "failed"}:
        return _Outcome(evaluation, "unknown", troubles=("Airflow knows no end of it: was it started?",))
    try:
        plan = read_plan(layout.plan_url(root, evaluation.suite, evaluation.checkpoint))
    except (BadInput, StoreError) as error:
        return _Outcome(evaluation, "failed", troubles=(code(f"{type(error).__name__}: {error}"),))
    row = row_of_plan(plan) if plan else None
    if row and (row.missing or state == "success"):
        return _Outcome(evaluation, state, row, tuple(code(str(one)) for one in row.missing or ()))
    if state == "success":
        return _Outcome(evaluation, "failed", troubles=("the run succeeded, but its plan is not in the store",))
    # A plan without gaps is not of this run: its numbers are not new.
    return _Outcome(evaluation, "failed", troubles=("only the run's log tells why (its plan failed, most likely)",))


def _counts(outcomes: list[_Outcome], selection: Selection) -> str:
    states = [outcome.state for outcome in outcomes]
    numbers = {
        "evaluated": states.count("success"),
        "failed": states.count("failed"),
        "unknown": states.count("unknown"),
        "still running": states.count("pending"),
        "left out": len(selection.left_out),
    }
    told = [f"{count} {word}" for word, count in numbers.items() if count]
    return ", ".join(told if outcomes else ["nothing to do", *told])


def _new(outcomes: list[_Outcome]) -> list[str]:
    rows = [outcome.cells() for outcome in outcomes if outcome.state != "pending"]
    if not rows:
        return []
    header = ["checkpoint", "suite", "LC win rate (%)", "win rate (%)", "avg", "status"]
    more = [f"and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
    return ["**New**", table(header, rows[:ROWS]), *more]


def _by_reason(heading: str, told: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each reason, from names with their reasons: on a bad night all have the same."""
    affected: dict[str, list[str]] = {}
    for name, reason in told:
        affected.setdefault(reason, []).append(name)
    lines = [f"{first(names, NAMES)}: {reason}" for reason, names in affected.items()]
    return [heading, "- " + first(lines, REASONS, "\n- ")] if lines else []


def _pending(outcomes: list[_Outcome]) -> list[str]:
    names = [outcome.name for outcome in outcomes if outcome.state == "pending"]
    return [f"**Still running**: {first(names, NAMES)}"] if names else []
