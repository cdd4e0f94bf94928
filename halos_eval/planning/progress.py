"""The progress of suites on many checkpoints, as everything is defined now.

Weights are not read: their digest is known from the latest plan, as long as the files are as they were then.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pydantic import BaseModel

from halos_eval.checkpoints.known import KnownWeights, recall
from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import Cluster
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, load_suite, suite_names
from halos_eval.errors import BadInput, DataUnavailable, HalosEvalError
from halos_eval.planning.current import Standing, files_of, judged_again, standing
from halos_eval.planning.definition import Definitions
from halos_eval.planning.plan import suite_manifest
from halos_eval.stages import tools
from halos_eval.stages.identity import Identity
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import CheckpointRef
from halos_eval.storage.series import Series, read_series

READERS = 16  # threads: they wait for the store
UNREAD = "weights not read yet"
REWRITTEN = "other weights"


class Progress(BaseModel):
    """The progress of a suite on a checkpoint."""

    model_config = FROZEN

    done: tuple[str, ...] = ()
    """Stages and tasks whose results are current: sample, judge, judge@LABEL for further ones, names of tasks."""
    failed: tuple[str, ...] = ()
    """Stages and tasks with a failure note, and parts whose data is unavailable."""
    missing: tuple[str, ...] = ()
    """Stages and tasks without a current result."""
    series: int | None = None
    """Number of the series of the results; None without any."""
    note: str = ""
    """Why all results are missing, if the weights are not those that were evaluated."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.failed or self.missing)

    def __str__(self) -> str:
        total = len(self.done) + len(self.failed) + len(self.missing)
        parts = ["complete" if self.complete else f"{len(self.done)} of {total}"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join([*parts, *([self.note] if self.note else [])])


class Overview(NamedTuple):
    """The progress of several suites on several checkpoints."""

    suites: tuple[str, ...]
    """Names of the suites."""
    progress: dict[str, dict[str, Progress]]
    """Progress by checkpoint and suite; only suites with a plan are listed."""
    unreadable: dict[str, str]
    """Unreadable plans and suites, with the reasons."""


def overview(
    root: str, checkpoints: Sequence[Checkpoint], cluster: Cluster, suites: Sequence[str] = (), newest: bool = False
) -> Overview:
    """Return the progress of ``checkpoints`` in the store ``root``, for ``suites`` or for all suites with a plan.

    With ``newest``, only results of the tools that are pinned now count. Raise BadInput for an unknown suite, and
    StoreError.
    """
    planned = sorted(name for name, entry in filesystem.entries(layout.plans_url(root)).items() if entry.is_folder)
    if unknown := [suite for suite in suites if suite not in {*planned, *suite_names()}]:
        raise BadInput(f"unknown suite {', '.join(map(repr, unknown))}; available: {', '.join(suite_names())}")
    reader = _Reader(root, suites or planned, cluster, newest)
    with ThreadPoolExecutor(READERS) as pool:
        progress = dict(zip((one.name for one in checkpoints), pool.map(reader.read, checkpoints), strict=True))
    return Overview(tuple(suites or planned), progress, reader.unreadable)


def some_stage_loads(root: str, checkpoint: Checkpoint, cluster: Cluster, suite: str, tasks: Sequence[str]) -> bool:
    """Return whether a stage of ``suite`` that loads the weights has no result yet. ``tasks``: only these, if any.

    Raise BadInput, StoreError.
    """
    progress = overview(root, [checkpoint], cluster, [suite], newest=True).progress[checkpoint.name].get(suite)
    wanted = {"sample" if task == ALPACA_EVAL else task for task in tasks or load_suite(suite).parts}
    return progress is None or not wanted <= set(progress.done)


class _Reader:
    def __init__(self, root: str, suites: Sequence[str], cluster: Cluster, newest: bool) -> None:
        self.root = root
        self.unreadable: dict[str, str] = {}
        self.plans = {suite: filesystem.entries(filesystem.join(layout.plans_url(root), suite)) for suite in suites}
        self.definitions = {suite: found for suite in suites if (found := self._definitions(suite, cluster))}
        self.series = read_series(root).with_(tools.versions())
        self.only: Series | None = self.series.of(tools.versions()) if newest else None

    def _definitions(self, suite: str, cluster: Cluster) -> Definitions | None:
        """Return the suite as it is defined now; None if it is gone or unreadable."""
        try:
            return Definitions(load_suite(suite), suite_manifest(suite, self.root, cluster), root=self.root)
        except HalosEvalError as error:
            self.unreadable[suite] = str(error)
            return None

    def read(self, checkpoint: Checkpoint) -> dict[str, Progress]:
        """Return the checkpoint's progress by suite. List its folder only once, for all suites."""
        file = f"{layout.folder_name(checkpoint.name)}.json"
        planned = [suite for suite in self.definitions if file in self.plans[suite]]
        if not planned:
            return {}
        files = files_of(self.root, checkpoint.name)
        known = recall(self.root, checkpoint.name, checkpoint.location, checkpoint.revision)
        found = {}
        for suite in planned:
            try:
                found[suite] = self._progress(self.definitions[suite], checkpoint, known, files)
            except HalosEvalError as error:
                self.unreadable[f"{suite} on {checkpoint.name}"] = str(error)
        return found

    def _progress(
        self, definitions: Definitions, checkpoint: Checkpoint, known: KnownWeights | None, files: frozenset[str]
    ) -> Progress:
        identities: dict[str, tuple[Identity, ...]] = {}
        failed: list[str] = []
        digest = known.digest if known else ""
        reference = CheckpointRef(name=checkpoint.name, location=checkpoint.location, digest=digest)
        for part in definitions.suite.parts:
            try:
                identities[part] = definitions.identities(part, checkpoint.metadata, reference)
            except DataUnavailable:
                failed.append(part)
        found = standing(identities, files, self.series, self.only)
        if known is None or not known.unchanged:
            titles = tuple(one.title for one in found.stages)
            return Progress(failed=tuple(failed), missing=titles, note=REWRITTEN if known else UNREAD)
        done = found.done - judged_again(self.root, checkpoint.name, found)
        return _sorted(found, done, failed)


def _sorted(found: Standing, done: frozenset[str], failed: Sequence[str]) -> Progress:
    titles = [one.title for one in found.stages]
    return Progress(
        done=tuple(title for title in titles if title in done),
        failed=(*(title for title in titles if title in found.failed), *failed),
        missing=tuple(title for title in titles if title not in done | found.failed),
        series=found.series.number if done else None,
    )
