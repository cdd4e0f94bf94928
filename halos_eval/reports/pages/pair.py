"""The page of two checkpoints side by side, from their comparison: the verdict, the tasks, and items that flipped."""

from __future__ import annotations

from halos_eval.reports.comparison import Comparison, Flip, TaskComparison
from halos_eval.reports.pages import document
from halos_eval.reports.pages.links import checkpoint_page

MOST = 40
"""Ids of flipped items that are listed for a task and a direction. The comparison's JSON has all."""


def page(comparison: Comparison) -> bytes:
    """Return the page of a comparison. Nothing is computed again."""
    return document.render(
        "pair.html.jinja",
        one=comparison,
        links=[f"../../{checkpoint_page(name)}" for name in (comparison.a, comparison.b)],
        tasks=[(task, flips_of(comparison, task)) for task in comparison.tasks],
        most=MOST,
    )


def flips_of(comparison: Comparison, task: TaskComparison) -> list[Flip]:
    """Return the flipped items of a task with their texts: first those on which A is worse."""
    own = [flip for flip in comparison.flips if flip.task == task.task]
    worse = set(task.worse)
    return sorted(own, key=lambda flip: flip.id not in worse)
