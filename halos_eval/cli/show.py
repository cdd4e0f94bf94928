"""What commands print, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Column, Table

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.planning.costs import Cost
from halos_eval.planning.packing import Packing
from halos_eval.planning.plan import Plan
from halos_eval.planning.progress import Overview
from halos_eval.planning.prune import Found
from halos_eval.reports.results import Cell, why_unavailable
from halos_eval.reports.terminal import PlainConsole, plain
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import Record


def show_record(record: Record) -> None:
    """Print the scores of a record, and the reasons of those that are missing."""
    table = Table("task", "metric", "filter", "value", "stderr", title=f"{record.checkpoint.name}: {record.stage}")
    for score in record.scores:
        error = Cell(score.value, score.stderr).shown_stderr
        stderr = "" if error is None else f"{error:.4f}"
        table.add_row(score.task, score.metric, score.filter, f"{score.value:.4f}", stderr)
    console = PlainConsole()
    if record.scores:
        console.print(table)
    for metric, reason in record.missing.items():
        console.print(f"{metric}: {reason}", soft_wrap=True)
    print(f"{record.coverage.scored} of {record.coverage.attempted} scored")
    if record.usage.price_usd is not None:
        print(f"{record.usage.price_usd:.4f} USD")


def show_manifest(manifest: Manifest) -> None:
    """Print the items of each part, or why it is unavailable."""
    table = Table("part", "needs", "revision", Column("MB", justify="right"), title=f"{manifest.suite}: fetched")
    for part, state in manifest.parts.items():
        if state.reason:
            table.add_row(part, why_unavailable(state.reason), "", "")
            continue
        sizes: dict[tuple[str, str], int] = {}
        for item in manifest.needs(part):
            key = f"{item.kind} {item.repo}", item.revision or ""
            sizes[key] = sizes.get(key, 0) + item.bytes
        for (need, revision), size in sizes.items() or {("nothing from the hub", ""): 0}.items():
            table.add_row(part, need, revision[:12], f"{size / 1e6:.1f}")
    PlainConsole().print(table)


def show_plan(plan: Plan, packing: Packing, cost: Cost, over: str | None) -> None:
    """Print the jobs of a plan with their reasons, the shared pods, the cost, and whether it is ``over`` the limit."""
    table = Table("", "stage", "task", "fingerprint", "why", title=f"{plan.suite} on {plan.checkpoint.name}")
    for job in plan.jobs:
        table.add_row("done" if job.done else "run", job.stage, job.task or job.label or "", job.fingerprint, job.why)
    console = PlainConsole()
    console.print(table)
    for part, reason in plan.unavailable.items():
        console.print(f"{part} is {why_unavailable(reason)}", soft_wrap=True)
    for title, why in packing.why.items():
        console.print(f"{title}: {why}", soft_wrap=True)
    console.print(f"cost: {cost}", soft_wrap=True)
    if over:
        console.print(f"Airflow would reject this run: {over}", soft_wrap=True)


def show_checkpoints(
    title: str, checkpoints: Sequence[Checkpoint], found: Overview, skipped: Mapping[str, str]
) -> None:
    """Print the progress of each suite on each checkpoint, and the reasons of what is skipped or unreadable."""
    table = Table("checkpoint", "registered (UTC)", "tags", *found.suites, title=title)
    for one in checkpoints:
        tags = ", ".join(f"{key}: {value}" for key, value in sorted(one.metadata.tags.items()))
        states = [str(found.progress[one.name].get(suite, "")) for suite in found.suites]
        table.add_row(one.name, f"{one.registered:%Y-%m-%d %H:%M}" if one.registered else "", plain(tags), *states)
    console = PlainConsole()
    console.print(table)
    for name, why in {**skipped, **found.unreadable}.items():
        console.print(plain(f"{name}: {why}"), soft_wrap=True)


def show_removals(found: Mapping[str, Found], deleted: bool) -> None:
    """Print what was removed or can be removed, and why other results stay."""
    removals = [one for each in found.values() for one in each.removals]
    table = Table("removed" if deleted else "can be removed", Column("MB", justify="right"), "why")
    for one in removals:
        table.add_row(plain(one.url), f"{one.size / 1e6:.1f}", plain(one.reason))
    console = PlainConsole()
    if removals:
        console.print(table)
    for name, each in found.items():
        if each.kept:
            console.print(plain(f"{name}: {each.kept}"), soft_wrap=True)
    total = f"{len(removals)} items, {sum(one.size for one in removals) / 1e6:.1f} MB"
    print(f"{total} removed" if deleted else f"{total} can be removed. Run it with --delete to remove them")
