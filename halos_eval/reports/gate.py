"""The policy's gate: compare an evaluated checkpoint with its baseline, and keep the outcome for Airflow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, zip_longest

from halos_eval.analysis.estimate import check_scipy
from halos_eval.config.policy import Gate, matches_name
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.planning.plan import Plan, read_plan
from halos_eval.reports import kept_rows
from halos_eval.reports.compare import compare
from halos_eval.reports.comparison import Comparison, Flip, GateOutcome, Verdict, write_comparison, write_gate
from halos_eval.reports.ranking import best
from halos_eval.reports.results import Row
from halos_eval.storage import layout

log = logging.getLogger(__name__)

FLIPS = 3
"""Items with which a regression is reported."""


def run_gate(root: str, suite: str, checkpoint: str, gate: Gate, margin: float) -> GateOutcome:
    """Compare a checkpoint as ``gate`` wants it, write the outcome and return it. Raise StoreError if that fails.

    A comparison that is not possible is an outcome with a reason, so the table is written anyway.
    """
    outcome = GateOutcome(checkpoint=checkpoint, suite=suite, rule=rule_of(gate), at=datetime.now(UTC))
    try:
        check_scipy()
        baseline = baseline_of(root, suite, checkpoint, gate)
        outcome = outcome.model_copy(update={"baseline": baseline})
        found = compare(root, suite, checkpoint, baseline, margin)
        write_comparison(root, found)
        outcome = outcome.model_copy(update=judged(found, gate))
    except HalosEvalError as error:
        outcome = outcome.model_copy(update={"reason": str(error)})
    write_gate(root, outcome)
    log.info("gate (%s): %s", outcome.rule, outcome)
    return outcome


def rule_of(gate: Gate) -> str:
    """Return how a gate chooses the baseline, in words."""
    same = f" with the same {', '.join(gate.same_tags)}" if gate.same_tags else ""
    return {
        "parent": f"the parent, which the tag {gate.parent_tag} names",
        "best": f"the best checkpoint{same}",
        "last": f"the checkpoint{same} registered before",
        "fixed": f"the checkpoint {gate.checkpoint}",
    }[gate.against]


def judged(found: Comparison, gate: Gate) -> dict[str, object]:
    """Return the fields of the outcome that the comparison gives."""
    worse = [one for one in found.tasks if one.verdict == Verdict.WORSE]
    blocked = tuple(one.task for one in worse if matches_name(one.task, gate.block))
    return {
        "verdict": found.verdict,
        "blocked": blocked,
        "warned": tuple(one.task for one in worse if one.task not in blocked),
        "reason": "; ".join(found.differs),
        "tasks": tuple(one for one in found.tasks if one.verdict in {Verdict.WORSE, Verdict.BETTER}),
        "flips": _telling(found.flips, [one.task for one in sorted(worse, key=lambda one: one.p_holm or 0)]),
    }


def _telling(flips: Sequence[Flip], tasks: Sequence[str]) -> tuple[Flip, ...]:
    """Return the first item of each task that is worse, the clearest task first, then the second ones."""
    own = [[flip for flip in flips if flip.task == task] for task in tasks]
    turns = chain.from_iterable(zip_longest(*own))
    return tuple(flip for flip in turns if flip)[:FLIPS]


def baseline_of(root: str, suite: str, checkpoint: str, gate: Gate) -> str:
    """Return the name of the checkpoint to compare with. Raise BadInput if there is none, or StoreError."""
    if gate.against == "fixed" and gate.checkpoint:
        return gate.checkpoint
    plan = read_plan(layout.plan_url(root, suite, checkpoint))
    if plan is None:
        raise BadInput(f"{checkpoint} has no plan of {suite}. Evaluate it first")
    if gate.against == "parent":
        if gate.parent_tag not in plan.tags:
            raise BadInput(f"{checkpoint} has no tag {gate.parent_tag}. Set it in halos_eval.yaml or in the registry")
        return plan.tags[gate.parent_tag]
    others = kept_rows.of_others(root, suite, layout.folder_name(checkpoint))
    others = [row for row in others if _same(row.tags, plan.tags, gate.same_tags)]
    found = best(others) if gate.against == "best" else _last(others, plan)
    if found is None:
        raise BadInput(f"no earlier checkpoint is {rule_of(gate)}: there is nothing to compare {checkpoint} with yet")
    return found.checkpoint


def _same(one: Mapping[str, str], other: Mapping[str, str], tags: Sequence[str]) -> bool:
    return all(tag in other and one.get(tag) == other[tag] for tag in tags)


def _last(rows: Sequence[Row], plan: Plan) -> Row | None:
    """Return the row that was registered last before the checkpoint."""
    if plan.registered is None:
        raise BadInput(f"{plan.checkpoint.name} has no time of registration. Evaluate it from a registry")
    earlier = [(row.registered, row) for row in rows if row.registered and row.registered < plan.registered]
    return max(earlier, key=lambda one: one[0])[1] if earlier else None
