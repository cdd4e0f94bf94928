"""What is to be evaluated, of all that is registered: what a night, a backfill or a registration starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel

from halos_eval.checkpoints.registry import Checkpoint, Moment, Registry
from halos_eval.config.policy import EvaluationPolicy, Limit, matches, matches_name
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, Suite, load_suite
from halos_eval.digests import digest_json
from halos_eval.planning.costs import Cost, read_history, within
from halos_eval.planning.progress import Progress, overview
from halos_eval.storage import layout

LONGEST = 100  # characters of a checkpoint's name in a run's; Airflow takes 250 for all of it


class Evaluation(BaseModel):
    """One suite on one checkpoint: one run of ``evaluate_checkpoint``."""

    model_config = FROZEN

    checkpoint: str
    """Name of the checkpoint."""
    suite: str
    """Name of the suite."""
    run_id: str
    """The run's name: the same for whoever asks for the same, so that it is done once."""


class Selection(BaseModel):
    """What is started, and what is not and why."""

    model_config = FROZEN

    evaluations: tuple[Evaluation, ...] = ()
    """What is started, by the time of registration."""
    complete: tuple[str, ...] = ()
    """CHECKPOINT: SUITE, of what has been evaluated already."""
    left_out: dict[str, str] = {}
    """What is not started though it is registered (half-written, over the limit, no rule for it), with the reason."""


class Backfill(BaseModel):
    """Which of the older checkpoints get a suite."""

    model_config = FROZEN

    match: tuple[str, ...] = ("*",)
    """Patterns of names, one of which has to fit: * stands for anything."""
    tags: dict[str, str] = {}
    """Patterns of tags, all of which the checkpoint has to have."""
    registered_from: Moment | None = None
    """Only those registered then or later."""
    registered_until: Moment | None = None
    """Only those registered before."""
    suite: str
    """Name of the suite."""
    only_missing: bool = True
    """Leave out what is complete, and run only what is missing of the others; else everything is run again."""


Started = Callable[[str], bool]
"""Whether there is a run of this name."""


def for_night(
    registry: Registry,
    policy: EvaluationPolicy,
    root: str,
    started: Started,
    start: datetime | None,
    end: datetime | None,
) -> Selection:
    """What the policy wants of the checkpoints registered in [start, end), as far as the night's limit goes.

    What is complete in the store ``root`` is not started, nor what was ``started`` before. Raises BadInput where the
    policy names a suite that is none, and what the registry raises if it cannot be read.
    """
    for suite in {suite for rule in policy.rules for suite in rule.suites}:
        load_suite(suite)  # a wrong policy is told in the first night, not in the first with such a checkpoint
    listed = registry.registered(start, end)
    wanted, left_out = _wanted(policy, listed.checkpoints)
    return _Selecting(root, started, policy.limits.night).select(wanted, listed.skipped | left_out)


def for_registration(registry: Registry, policy: EvaluationPolicy, root: str, started: Started, name: str) -> Selection:
    """The same for the one checkpoint called ``name``, without the limit. Raises what the registry raises for it."""
    return _Selecting(root, started).select(*_wanted(policy, [registry.get(name)]))


def for_backfill(registry: Registry, asked: Backfill, root: str, started: Started, origin: str) -> Selection:
    """What is asked for, with runs of its own for each ``origin``: a backfill tries again what has failed before.

    Raises BadInput, and what the registry raises if it cannot be read.
    """
    load_suite(asked.suite)  # wrong, although there may be no checkpoint for it
    listed = registry.registered(asked.registered_from, asked.registered_until)
    wanted = [
        (one, asked.suite)
        for one in listed.checkpoints
        if matches(one.name, one.metadata.tags, asked.match, asked.tags)
    ]
    # By their names only: what cannot be read has no tags.
    skipped = {name: why for name, why in listed.skipped.items() if matches_name(name, asked.match)}
    return _Selecting(root, started, origin=origin, anew=not asked.only_missing).select(wanted, skipped)


def look_back(policy: EvaluationPolicy, start: datetime) -> datetime:
    """Where the night that begins at ``start`` begins to look."""
    return start - timedelta(days=policy.look_back_days)


def _wanted(
    policy: EvaluationPolicy, checkpoints: Iterable[Checkpoint]
) -> tuple[list[tuple[Checkpoint, str]], dict[str, str]]:
    """What the policy wants, and what it leaves out."""
    wanted: list[tuple[Checkpoint, str]] = []
    left_out = {}
    for checkpoint in checkpoints:
        suites = policy.suites_for(checkpoint.name, checkpoint.metadata.tags)
        wanted += [(checkpoint, suite) for suite in suites]
        if not suites:
            left_out[checkpoint.name] = "the policy gives it no suite"
    return wanted, left_out


class _Selecting:
    def __init__(
        self, root: str, started: Started, limit: Limit | None = None, origin: str = "", anew: bool = False
    ) -> None:
        """``anew``: also what is complete."""
        self.root, self.started, self.limit, self.origin, self.anew = root, started, limit or Limit(), origin, anew

    def select(self, wanted: Sequence[tuple[Checkpoint, str]], left_out: dict[str, str]) -> Selection:
        suites = {name: load_suite(name) for _, name in wanted}
        checkpoints = list({one.name: one for one, _ in wanted}.values())
        progress = {} if self.anew else overview(self.root, checkpoints, list(suites)).progress
        history = {name: read_history(suite, self.root) for name, suite in suites.items()}
        complete: list[str] = []
        left_out = dict(left_out)
        todo: list[tuple[Evaluation, Cost]] = []
        for checkpoint, name in wanted:
            suite, title = suites[name], f"{checkpoint.name}: {name}"
            state = progress.get(checkpoint.name, {}).get(name)
            run_id = _run_id(checkpoint, suite, self.origin)
            if state and state.complete:
                complete.append(title)
            elif self.started(run_id):
                left_out[title] = f"it was started before, as run {run_id}: clear there what has failed"
            else:
                cost = history[name].of_suite(suite, checkpoint, _parts(suite, state))
                todo.append((Evaluation(checkpoint=checkpoint.name, suite=name, run_id=run_id), cost))
        admitted, over = within(todo, self.limit)
        left_out |= {f"{one.checkpoint}: {one.suite}": why for one, why in over}
        return Selection(evaluations=tuple(admitted), complete=tuple(complete), left_out=left_out)


def _parts(suite: Suite, state: Progress | None) -> list[str]:
    """The parts of ``suite`` that have to be run, all of them if older weights were evaluated."""
    done = set(state.done) if state and not state.outdated else set()
    titles = {part: {"sample", "judge"} if part == ALPACA_EVAL else {part} for part in suite.parts}
    return [part for part, needed in titles.items() if not needed <= done]


def _run_id(checkpoint: Checkpoint, suite: Suite, origin: str) -> str:
    """The same name for the same weights and the same suite: registered anew, or with another task, it is another."""
    registered = checkpoint.registered.isoformat() if checkpoint.registered else None
    digest = digest_json([checkpoint.name, registered, checkpoint.revision, suite.definitions, origin])
    return f"{suite.name}__{layout.folder_name(checkpoint.name)[:LONGEST]}__{digest[:12]}"
