"""The command line ``halos-eval COMMAND``, which is the entry point of every pod. Only this module prints and exits."""

from __future__ import annotations

import json
import logging
import signal
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import CliApp, CliPositionalArg, CliSubCommand, SettingsError, get_subcommand
from rich.console import Console
from rich.table import Column, Table

from halos_eval.checkpoints.metadata import from_location
from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.checkpoints.registry import Checkpoint, Moment, NotRegistered
from halos_eval.config.cluster import load_cluster
from halos_eval.config.policy import load_policy
from halos_eval.config.settings import FROZEN, Settings
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.planning.costs import excess, read_history
from halos_eval.planning.plan import make_plan, suite_manifest
from halos_eval.planning.progress import Progress, overview
from halos_eval.reports.results import Cell, why_unavailable
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.reports.terminal import Summary, plain
from halos_eval.stages.fetch import FetchConfig, fetch
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.harness.stage import harness
from halos_eval.stages.judge.options import JudgeConfig
from halos_eval.stages.judge.stage import judge
from halos_eval.stages.sample import SampleConfig, sample
from halos_eval.storage.layout import NAME
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import Record


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


class HalosEval(BaseModel):
    """Evaluate aligned language models: AlpacaEval and lm-evaluation-harness.

    Exit codes: 0 success, 1 bug, 2 bad input, 3 data unavailable, 4 rejected by the judge's endpoint, 5 incomplete (run
    it again), 6 store unusable, 7 no result of the evaluation tool, 130 or 143 interrupted (run it again).
    """

    model_config = FROZEN

    fetch: CliSubCommand[FetchConfig]
    """Fetch and pin the data that a suite needs, so that the other stages run without the hub."""
    sample: CliSubCommand[SampleConfig]
    """Sample answers to prompts with vLLM."""
    judge: CliSubCommand[JudgeConfig]
    """Let an LLM judge compare sampled answers with a reference (AlpacaEval)."""
    harness: CliSubCommand[HarnessConfig]
    """Run one task of lm-evaluation-harness."""
    summarize: CliSubCommand[SummarizeConfig]
    """Write one row for each checkpoint as CSV."""
    plan: CliSubCommand[PlanConfig]
    """Print the jobs of a suite on a checkpoint, and the reasons."""
    checkpoints: CliSubCommand[CheckpointsConfig]
    """List the registered checkpoints, and the progress of each suite."""
    pools: CliSubCommand[PoolsConfig]
    """Print the pools of the cluster file, for `airflow pools import`."""


def main() -> None:
    """Run the command of ``sys.argv`` and exit."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in ("httpx2", "huggingface_hub"):  # they log each of AlpacaEval's 805 requests
        logging.getLogger(name).setLevel(logging.WARNING)
    # Kubernetes and Airflow end a process with SIGTERM. Raise, so that finished work is saved.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command = get_subcommand(CliApp.run(HalosEval, cli_args=argv or ["--help"]), cli_exit_on_error=False)
        _dispatch(command)
    except ValidationError as error:
        return _fail(BadInput("; ".join(_problem(one) for one in error.errors())))
    except SettingsError as error:
        return _fail(BadInput(f"{error}; see --help"))
    except HalosEvalError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("halos-eval: interrupted. Run it again; finished work is kept", file=sys.stderr)
        return 130
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _fail(error: HalosEvalError) -> int:
    message = " ".join(str(error).split())  # one line, even if a library's message has several
    print(f"halos-eval: {type(error).__name__}: {message}", file=sys.stderr)
    return error.exit_code


def _problem(one: Any) -> str:
    option = "-".join(str(part) for part in one["loc"] if part not in HalosEval.model_fields).replace("_", "-")
    return f"--{option}: {one['msg']}" if option else str(one["msg"])


def _dispatch(command: object) -> None:
    match command:
        case FetchConfig():
            _show_manifest(fetch(command))
            print(f"manifest: {command.manifest}")
        case SampleConfig():
            _show(sample(command))
        case JudgeConfig():
            _show(judge(command))
        case HarnessConfig():
            _show(harness(command))
        case SummarizeConfig():
            Console().print(Summary(summarize(command), command.output))
            print(f"summary: {command.output}")
        case PlanConfig():
            _plan(command)
        case CheckpointsConfig():
            _checkpoints(command)
        case PoolsConfig():
            print(json.dumps(load_cluster().pools.document(), indent=2))


def _show(record: Record) -> None:
    table = Table("task", "metric", "filter", "value", "stderr", title=f"{record.checkpoint.name}: {record.stage}")
    for score in record.scores:
        error = Cell(score.value, score.stderr).shown_stderr
        stderr = "" if error is None else f"{error:.4f}"
        table.add_row(score.task, score.metric, score.filter, f"{score.value:.4f}", stderr)
    console = Console(markup=False)
    if record.scores:
        console.print(table)
    for metric, reason in record.missing.items():
        console.print(f"{metric}: {reason}", soft_wrap=True)
    print(f"{record.coverage.scored} of {record.coverage.attempted} scored")


def _show_manifest(manifest: Manifest) -> None:
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
    Console(markup=False).print(table)


def _plan(config: PlanConfig) -> None:
    suite, cluster = load_suite(config.suite), load_cluster()
    found = make_plan(
        suite.keep(list(config.tasks)),
        _find(config.checkpoint),
        config.store,
        cluster,
        force=config.force,
        judge=config.judge,
        manifest=suite_manifest(suite.name, config.store, cluster),
    )
    cost = read_history(suite, config.store).of_plan(found)
    if config.json_output:
        print(json.dumps(found.model_dump(mode="json") | {"cost": cost.model_dump(mode="json")}, indent=2))
        return
    table = Table("", "stage", "task", "fingerprint", "why", title=f"{found.suite} on {found.checkpoint.name}")
    for job in found.jobs:
        table.add_row("done" if job.done else "run", job.stage, job.task or "", job.fingerprint, job.why)
    console = Console(markup=False)
    console.print(table)
    for part, reason in found.unavailable.items():
        console.print(f"{part} is {why_unavailable(reason)}", soft_wrap=True)
    console.print(f"cost: {cost}", soft_wrap=True)
    if over := excess(cost, load_policy().limits.run):
        console.print(f"Airflow would reject this run: {over}", soft_wrap=True)


def _find(checkpoint: str) -> Checkpoint:
    settings = Settings()
    if not NAME.fullmatch(checkpoint):
        return from_location(checkpoint)
    try:
        return open_registry(settings.checkpoints, settings.steps).get(checkpoint)
    except NotRegistered:
        if "/" not in checkpoint and not Path(checkpoint).is_dir():
            raise
        return from_location(checkpoint)


def _checkpoints(config: CheckpointsConfig) -> None:
    settings = Settings()
    listed = open_registry(settings.checkpoints, settings.steps).registered(start=config.since)
    checkpoints = [one for one in listed.checkpoints if fnmatchcase(one.name, config.match)]
    skipped = {name: why for name, why in listed.skipped.items() if fnmatchcase(name, config.match)}
    found = overview(config.store, checkpoints, config.suite)
    if config.json_output:
        rows = [one.model_dump(mode="json") | {"suites": _states(found.progress[one.name])} for one in checkpoints]
        print(json.dumps({"checkpoints": rows, "skipped": skipped, "unreadable": found.unreadable}, indent=2))
        return
    table = Table("checkpoint", "registered (UTC)", "tags", *found.suites, title=settings.checkpoints)
    for one in checkpoints:
        tags = ", ".join(f"{key}: {value}" for key, value in sorted(one.metadata.tags.items()))
        states = [str(found.progress[one.name].get(suite, "")) for suite in found.suites]
        table.add_row(one.name, f"{one.registered:%Y-%m-%d %H:%M}" if one.registered else "", plain(tags), *states)
    console = Console(markup=False)
    console.print(table)
    for name, why in (skipped | found.unreadable).items():
        console.print(plain(f"{name}: {why}"), soft_wrap=True)


def _states(progress: dict[str, Progress]) -> dict[str, Any]:
    return {suite: one.model_dump(mode="json") | {"complete": one.complete} for suite, one in progress.items()}


if __name__ == "__main__":
    main()
