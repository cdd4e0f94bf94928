"""Compose the morning message: what is new, what failed and why, in Markdown that is short on every night."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput, StoreError
from halos_eval.planning.plan import read_plan
from halos_eval.planning.selection import Evaluation, Selection
from halos_eval.reports.comparison import GateOutcome
from halos_eval.reports.markdown import code, first, number, table
from halos_eval.reports.results import Cell, Row
from halos_eval.reports.suite_rows import SuiteRows
from halos_eval.reports.table import COMPLETE, short_status
from halos_eval.storage import layout
from halos_eval.storage.records import readable

ROWS, REASONS, NAMES = 20, 10, 5
"""Maximum numbers of rows, of reasons, and of names per reason. The table in the store has all of them."""
TEXT = 100
"""Characters of a prompt or answer."""
# Airflow's states of a run that has not ended.
PENDING = {"queued", "running"}


class Message(BaseModel):
    """The morning message."""

    model_config = FROZEN

    title: str
    """One line: the outcome in numbers."""
    body: str
    """Markdown that is also legible as plain text. Text of other sources is in code spans."""
    failed: bool
    """Whether someone must act: a run failed, or its final state is unknown."""


@dataclass(frozen=True)
class _Outcome:
    """The outcome of one evaluation."""

    evaluation: Evaluation
    state: str
    """success, pending, unknown or failed; failed also if the store has no readable result."""
    row: Row | None = None
    """Its row of the table, if any."""
    gate: GateOutcome | None = None
    """Outcome of the policy's gate, if any."""
    troubles: tuple[str, ...] = ()
    """Missing parts, each with its reason, as code spans or as text of this module."""

    @property
    def name(self) -> str:
        """The evaluation and, if it did not succeed, the run whose log has the details."""
        run = f", run {code(self.evaluation.run_id)}" if self.state in {"failed", "unknown"} else ""
        return f"{code(self.evaluation.checkpoint)} ({code(self.evaluation.suite)}{run})"

    @property
    def status(self) -> str:
        """The short status for the table."""
        if self.row is None:
            return COMPLETE if self.state == "success" else self.state
        short = short_status(self.troubles, self.row.trial, self.row.warnings)
        return short if self.state == "success" else ", ".join([self.state, *([short] if short != COMPLETE else [])])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons why a score that is shown may mislead."""
        return self.row.warnings if self.row else ()

    def cells(self) -> list[str]:
        """The row of the table."""
        cells = self.row.cells if self.row else {}
        average = Cell(self.row.average, self.row.average_stderr) if self.row and self.row.average is not None else None
        return [
            code(self.evaluation.checkpoint),
            code(self.evaluation.suite),
            number(cells.get("alpacaeval_lcwr"), 2),
            number(cells.get("alpacaeval_wr"), 2),
            number(average, 4),
            self.status,
        ]


def compose(title: str, selection: Selection | None, states: dict[str, str], root: str) -> Message:
    """Return the message about the selected evaluations; ``selection`` is None if the task `find` failed.

    ``title`` names the night. ``states`` maps each run_id to Airflow's state of the run; ``root`` is the store.
    """
    if selection is None:
        return Message(
            title=f"{title}: failed, no evaluation was started",
            body="The task `find` failed, so no evaluation was started. The log of the task `find` has the reason. "
            "Check that the registry is reachable and that the policy file is valid.\n",
            failed=True,
        )
    suites = {suite: SuiteRows(root, suite) for suite in {one.suite for one in selection.evaluations}}
    outcomes = [_outcome(evaluation, states, suites[evaluation.suite]) for evaluation in selection.evaluations]
    counts = _counts(outcomes, selection)
    parts = [f"**{counts.capitalize()}.** Evaluated earlier: {len(selection.complete)}."]
    parts += _new(outcomes)
    parts += _compared(outcomes)
    parts += _by_reason("**Failed or missing, and why**", ((one.name, why) for one in outcomes for why in one.troubles))
    parts += _by_reason("**Warnings**", ((one.name, code(why)) for one in outcomes for why in one.warnings))
    parts += _pending(outcomes)
    parts += _by_reason("**Skipped, and why**", ((code(name), code(why)) for name, why in selection.left_out.items()))
    if suites:
        tables = [code(layout.report_url(root, suite), 1000) for suite in sorted(suites)]
        parts.append(f"Full table: {first(tables, NAMES)}")
    failed = any(outcome.state in {"failed", "unknown"} for outcome in outcomes)
    return Message(title=f"{title}: {counts}", body="\n\n".join(parts) + "\n", failed=failed)


def _outcome(evaluation: Evaluation, states: dict[str, str], rows: SuiteRows) -> _Outcome:
    state = states.get(evaluation.run_id, "unknown")
    if state in PENDING:
        return _Outcome(evaluation, "pending")
    if state not in {"success", "failed"}:
        return _Outcome(
            evaluation, "unknown", troubles=("Airflow has no final state for this run; it may never have started",)
        )
    try:
        plan = read_plan(layout.plan_url(rows.root, evaluation.suite, evaluation.checkpoint))
        row = rows.row(plan) if plan else None
        gate, _ = readable(layout.gate_url(rows.root, evaluation.suite, evaluation.checkpoint), GateOutcome)
    except (BadInput, StoreError) as error:
        return _Outcome(evaluation, "failed", troubles=(code(f"{type(error).__name__}: {error}"),))
    if row and (row.missing or state == "success" or (gate and gate.blocked)):
        return _Outcome(evaluation, state, row, gate, tuple(code(str(one)) for one in row.missing or ()))
    if state == "success":
        return _Outcome(evaluation, "failed", troubles=("the run succeeded, but its plan is not in the store",))
    # A plan with all results belongs to an earlier run, so its numbers are not new.
    return _Outcome(
        evaluation, "failed", troubles=("the reason is only in the run's log; most likely the task `plan` failed",)
    )


def _counts(outcomes: list[_Outcome], selection: Selection) -> str:
    states = [outcome.state for outcome in outcomes]
    numbers = {
        "evaluated": states.count("success"),
        "failed": states.count("failed"),
        "unknown": states.count("unknown"),
        "still running": states.count("pending"),
        "skipped": len(selection.left_out),
    }
    counts = [f"{count} {word}" for word, count in numbers.items() if count]
    return ", ".join(counts if outcomes else ["nothing to do", *counts])


def _new(outcomes: list[_Outcome]) -> list[str]:
    rows = [outcome.cells() for outcome in outcomes if outcome.state != "pending"]
    if not rows:
        return []
    header = ["checkpoint", "suite", "LC win rate (%)", "win rate (%)", "avg", "status"]
    more = [f"and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
    return ["**New**", table(header, rows[:ROWS]), *more]


def _compared(outcomes: list[_Outcome]) -> list[str]:
    """Return one line for each checkpoint that the policy compares; a worse one with its most telling items."""
    found = [(outcome.name, outcome.gate) for outcome in outcomes if outcome.gate]
    found.sort(key=lambda one: (not one[1].blocked, not one[1].warned))  # worse ones first
    lines = ["\n".join([f"{name}: {code(str(gate))}", *_telling(gate)]) for name, gate in found]
    return ["**Compared**", "- " + first(lines, REASONS, "\n- ")] if lines else []


def _telling(gate: GateOutcome) -> list[str]:
    """Return the items of a regression, with texts only in code spans, because a model wrote them."""
    return [
        f"  - {code(f'{one.task} {one.id}')}: {code(one.prompt[-TEXT:])} now {code(one.answer_a, TEXT)}, before "
        f"{code(one.answer_b, TEXT)}"
        for one in gate.flips
    ]


def _by_reason(heading: str, reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line per reason, because on a bad night most names have the same one."""
    affected: dict[str, list[str]] = {}
    for name, reason in reasons:
        affected.setdefault(reason, []).append(name)
    lines = [f"{first(names, NAMES)}: {reason}" for reason, names in affected.items()]
    return [heading, "- " + first(lines, REASONS, "\n- ")] if lines else []


def _pending(outcomes: list[_Outcome]) -> list[str]:
    names = [outcome.name for outcome in outcomes if outcome.state == "pending"]
    return [f"**Still running**: {first(names, NAMES)}"] if names else []
