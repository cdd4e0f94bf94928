"""The evaluations that a night, a backfill or an event starts, and those that it does not, with the reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel

from halos_eval.checkpoints.known import state_of
from halos_eval.checkpoints.registry import Checkpoint, Moment, Registry
from halos_eval.config.cluster import Cluster
from halos_eval.config.policy import EvaluationPolicy, Limit, matches, matches_name
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, Suite, load_suite
from halos_eval.digests import digest_json
from halos_eval.errors import BadInput
from halos_eval.planning.chat import scored_metadata
from halos_eval.planning.costs import Cost, read_history, within
from halos_eval.planning.definition import Definitions
from halos_eval.planning.interrupted import interrupted
from halos_eval.planning.progress import Progress, overview
from halos_eval.stages.chat_template import read_template
from halos_eval.storage import layout

LONGEST = 100  # characters of the checkpoint's name in a run's name, which Airflow limits to 250


class Evaluation(BaseModel):
    """One suite on one checkpoint: one run of ``evaluate_checkpoint``."""

    model_config = FROZEN

    checkpoint: str
    """Name of the checkpoint."""
    suite: str
    """Name of the suite."""
    run_id: str
    """The run's name. The same evaluation always has the same name, so that it starts only once."""
    parts: tuple[str, ...] = ()
    """Parts of the suite to evaluate; empty: all that have no result."""


class Selection(BaseModel):
    """Evaluations to start, and those not to start with the reasons."""

    model_config = FROZEN

    evaluations: tuple[Evaluation, ...] = ()
    """Evaluations to start, in the order of registration."""
    complete: tuple[str, ...] = ()
    """Complete evaluations, as CHECKPOINT: SUITE."""
    left_out: dict[str, str] = {}
    """Registered checkpoints that are not evaluated (incomplete, over the limit, no rule), with the reasons."""


class Backfill(BaseModel):
    """The parameters of a backfill: a suite, and the checkpoints that get it."""

    model_config = FROZEN

    match: tuple[str, ...] = ("*",)
    """Patterns of names, one of which must match; * matches anything."""
    tags: dict[str, str] = {}
    """Patterns of tags, all of which must match."""
    registered_from: Moment | None = None
    """Only checkpoints registered at this time or later."""
    registered_until: Moment | None = None
    """Only checkpoints registered before this time."""
    suite: str
    """Name of the suite."""
    only_missing: bool = True
    """Run only what has no result; False: run everything again."""


Started = Callable[[str], bool]
"""Function that returns whether a run of this name exists."""


def for_night(
    registry: Registry,
    policy: EvaluationPolicy,
    root: str,
    cluster: Cluster,
    started: Started,
    start: datetime | None,
    end: datetime | None,
) -> Selection:
    """Select the policy's suites for the checkpoints registered in [start, end), within the night's limit.

    Evaluations that are complete in the store ``root``, or were ``started`` before, are not selected, unless the
    infrastructure ended them. Raise BadInput if the policy names an unknown suite, and the registry's errors.
    """
    for suite in {suite for rule in policy.rules for suite in rule.suites}:
        load_suite(suite)  # raises in the first night, even if no checkpoint gets this suite yet
    listed = registry.registered(start, end)
    pairs, left_out = _apply(policy, listed.checkpoints)
    return _Selector(root, cluster, started, policy.limits.night).select(pairs, listed.skipped | left_out)


def for_registration(
    registry: Registry, policy: EvaluationPolicy, root: str, cluster: Cluster, started: Started, name: str
) -> Selection:
    """Select the policy's suites for the checkpoint ``name``, without the limit. Raise the registry's errors."""
    return _Selector(root, cluster, started).select(*_apply(policy, [registry.get(name)]))


def for_backfill(
    registry: Registry, asked: Backfill, root: str, cluster: Cluster, started: Started, origin: str
) -> Selection:
    """Select what a backfill asks for. Raise BadInput and the registry's errors.

    Results of earlier versions of the tools do not count: a backfill brings checkpoints into the newest series, while a
    night leaves them as they are.

    The names of the runs depend on ``origin``, so that each backfill runs failed evaluations again.
    """
    load_suite(asked.suite)  # raises, even if no checkpoint matches
    listed = registry.registered(asked.registered_from, asked.registered_until)
    pairs = [
        (one, asked.suite)
        for one in listed.checkpoints
        if matches(one.name, one.metadata.tags, asked.match, asked.tags)
    ]
    # By name only, because the tags of unreadable checkpoints are unknown.
    skipped = {name: why for name, why in listed.skipped.items() if matches_name(name, asked.match)}
    return _Selector(root, cluster, started, origin=origin, rerun=not asked.only_missing).select(pairs, skipped)


def look_back(policy: EvaluationPolicy, start: datetime) -> datetime:
    """Return from when a night whose interval begins at ``start`` takes late checkpoints."""
    return start - timedelta(days=policy.look_back_days)


def _apply(
    policy: EvaluationPolicy, checkpoints: Iterable[Checkpoint]
) -> tuple[list[tuple[Checkpoint, str]], dict[str, str]]:
    """Return each checkpoint with each of its suites, and the checkpoints without a suite."""
    pairs: list[tuple[Checkpoint, str]] = []
    left_out = {}
    for checkpoint in checkpoints:
        suites = policy.suites_for(checkpoint.name, checkpoint.metadata.tags)
        pairs += [(checkpoint, suite) for suite in suites]
        if not suites:
            left_out[checkpoint.name] = "the policy file gives it no suite"
    return pairs, left_out


class _Selector:
    def __init__(
        self,
        root: str,
        cluster: Cluster,
        started: Started,
        limit: Limit | None = None,
        origin: str = "",
        rerun: bool = False,
    ) -> None:
        """``origin``: the backfill, if it is one. ``rerun``: select complete evaluations as well."""
        self.root, self.cluster, self.started, self.limit = root, cluster, started, limit or Limit()
        self.origin, self.rerun = origin, rerun

    def select(self, pairs: Sequence[tuple[Checkpoint, str]], left_out: dict[str, str]) -> Selection:
        suites = {name: load_suite(name) for _, name in pairs}
        own = {name: Definitions(suite).own for name, suite in suites.items()}
        progress = self._progress([one for one, _ in pairs], suites)
        history = {name: read_history(suite, self.root) for name, suite in suites.items()}
        complete: list[str] = []
        left_out = dict(left_out)
        todo: list[tuple[Evaluation, Cost]] = []
        for checkpoint, name in pairs:
            title, state = f"{checkpoint.name}: {name}", progress.get(checkpoint.name, {}).get(name)
            if state and state.complete:
                complete.append(title)
                continue
            evaluation = self._evaluation(checkpoint, suites[name], own[name])
            if self.started(evaluation.run_id):
                left_out[title] = f"started before, as run {evaluation.run_id}. Clear the tasks of that run that failed"
            else:
                parts = _parts(suites[name], state)
                wanted = [part for part in parts if part in (evaluation.parts or parts)]
                done = state.done if state else ()
                todo.append((evaluation, history[name].of_suite(suites[name], checkpoint, wanted, done=done)))
        admitted, over = within(todo, self.limit)
        left_out |= {f"{one.checkpoint}: {one.suite}": why for one, why in over}
        return Selection(evaluations=tuple(admitted), complete=tuple(complete), left_out=left_out)

    def _evaluation(self, checkpoint: Checkpoint, suite: Suite, definition: str) -> Evaluation:
        """Return the evaluation, or the one that follows its latest run if the infrastructure ended that."""
        run_id = _run_id(checkpoint, suite.name, definition, self.origin)
        evaluation = Evaluation(checkpoint=checkpoint.name, suite=suite.name, run_id=run_id)
        if not self.started(run_id) or not (found := interrupted(self.root, suite, checkpoint.name)):
            return evaluation
        again = _run_id(checkpoint, suite.name, definition, f"after {found.run}")
        return evaluation.model_copy(update={"run_id": again, "parts": found.parts})

    def _progress(self, checkpoints: Sequence[Checkpoint], suites: Iterable[str]) -> dict[str, dict[str, Progress]]:
        if self.rerun:
            return {}
        once = list({one.name: one for one in checkpoints}.values())
        return overview(self.root, once, self.cluster, list(suites), newest=bool(self.origin)).progress


def _parts(suite: Suite, state: Progress | None) -> list[str]:
    """Return the parts of ``suite`` that must run."""
    done = set(state.done) if state else set()
    judged = {"sample", *(suite.alpaca_eval.judge_titles if suite.alpaca_eval else ())}
    titles = {part: judged if part == ALPACA_EVAL else {part} for part in suite.parts}
    return [part for part, needed in titles.items() if not needed <= done]


def _run_id(checkpoint: Checkpoint, suite: str, definition: str, origin: str) -> str:
    """Return the name of a run. It changes if the checkpoint or the suite changes, but not with new tools."""
    registered = checkpoint.registered.isoformat() if checkpoint.registered else None
    state = [state_of([checkpoint.location]), _template(checkpoint), *scored_metadata(checkpoint.metadata)]
    digest = digest_json([checkpoint.name, registered, checkpoint.revision, state, definition, origin])
    return f"{suite}__{layout.folder_name(checkpoint.name)[:LONGEST]}__{digest[:12]}"


def _template(checkpoint: Checkpoint) -> str | None:
    try:
        return read_template(checkpoint.metadata.chat_template)
    except BadInput as error:
        return str(error)  # its run fails in the task `plan`, with this reason
