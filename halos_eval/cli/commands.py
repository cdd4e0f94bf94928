"""The commands that only read: plan, checkpoints, pools."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from halos_eval.checkpoints.metadata import from_location
from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.checkpoints.registry import Checkpoint, Moment, NotRegistered
from halos_eval.cli.show import show_checkpoints, show_plan
from halos_eval.config.cluster import load_cluster
from halos_eval.config.policy import load_policy
from halos_eval.config.settings import FROZEN, Settings
from halos_eval.config.suite import load_suite
from halos_eval.planning.costs import excess, read_history
from halos_eval.planning.packs import packing_of_jobs
from halos_eval.planning.plan import make_plan, suite_manifest
from halos_eval.planning.progress import Progress, overview
from halos_eval.storage.layout import is_original


class PlanConfig(BaseModel):
    """Print the jobs of SUITE on CHECKPOINT, which of them are done, the reasons and the estimated cost."""

    model_config = FROZEN

    suite: CliPositionalArg[str]
    """Name or file of a suite."""
    checkpoint: CliPositionalArg[str]
    """Name in the registry (HALOS_EVAL_CHECKPOINTS), a folder, or NAMESPACE/NAME on the hub."""
    store: str = Field(default_factory=lambda: Settings().store)
    """Folder or object storage with all results."""
    tasks: tuple[str, ...] = ()
    """Only these parts of the suite: alpaca_eval or names of tasks (default: all)."""
    judge: str | None = None
    """Judge to use instead of the suite's."""
    force: bool = False
    """Run everything again."""
    json_output: Annotated[bool, Field(alias="json")] = False
    """Print the plan as JSON, with its cost."""


class CheckpointsConfig(BaseModel):
    """List the checkpoints of the registry (HALOS_EVAL_CHECKPOINTS), and the progress of each suite."""

    model_config = FROZEN

    store: str = Field(default_factory=lambda: Settings().store)
    """Folder or object storage with all results."""
    suite: tuple[str, ...] = ()
    """Only these suites (default: all with a plan)."""
    since: Moment | None = None
    """Only checkpoints registered since then: 2026-11-01, or 2026-11-01T12:00+01:00 (default zone: UTC)."""
    match: str = "*"
    """Only names that match this pattern; * matches anything."""
    json_output: Annotated[bool, Field(alias="json")] = False
    """Print all fields as JSON."""


class PoolsConfig(BaseModel):
    """Print the pools of the cluster file (HALOS_EVAL_CLUSTER) in the format of `airflow pools import`."""

    model_config = FROZEN


def plan(config: PlanConfig) -> None:
    """Print the plan. Raises BadInput, DataUnavailable, StoreError."""
    suite, cluster = load_suite(config.suite), load_cluster()
    checkpoint = _find(config.checkpoint)
    found = make_plan(
        suite.keep(list(config.tasks)),
        checkpoint,
        config.store,
        cluster,
        force=config.force,
        judge=config.judge,
        manifest=suite_manifest(suite.name, config.store, cluster),
    )
    history = read_history(suite, config.store, found)
    packing = packing_of_jobs(suite, checkpoint, found.jobs, history.expected)
    cost = history.of_plan(found, packing)
    if config.json_output:
        more = {"cost": cost.model_dump(mode="json"), "packing": packing._asdict()}
        print(json.dumps(found.model_dump(mode="json") | more, indent=2))
        return
    show_plan(found, packing, cost, excess(cost, load_policy().limits.run))


def _find(checkpoint: str) -> Checkpoint:
    settings = Settings()
    if not is_original(checkpoint):
        return from_location(checkpoint)
    try:
        return open_registry(settings.checkpoints, settings.steps).get(checkpoint)
    except NotRegistered:
        if "/" not in checkpoint and not Path(checkpoint).is_dir():
            raise
        return from_location(checkpoint)


def checkpoints(config: CheckpointsConfig) -> None:
    """Print the list. Raises BadInput, StoreError, RegistryUnavailable."""
    settings = Settings()
    listed = open_registry(settings.checkpoints, settings.steps).registered(start=config.since)
    selected = [one for one in listed.checkpoints if fnmatchcase(one.name, config.match)]
    skipped = {name: why for name, why in listed.skipped.items() if fnmatchcase(name, config.match)}
    found = overview(config.store, selected, load_cluster(), config.suite)
    if config.json_output:
        rows = [one.model_dump(mode="json") | {"suites": _states(found.progress[one.name])} for one in selected]
        print(json.dumps({"checkpoints": rows, "skipped": skipped, "unreadable": found.unreadable}, indent=2))
        return
    show_checkpoints(settings.checkpoints, selected, found, skipped)


def _states(progress: dict[str, Progress]) -> dict[str, Any]:
    return {suite: one.model_dump(mode="json") | {"complete": one.complete} for suite, one in progress.items()}
