"""Remove from the store what nobody needs any more: results of old definitions, journals and claims of ended runs.

A result stays if some suite of the store defines it, in any series, or if the latest plan of a suite names it. So
neither the tables of suites nor plans nor the progress of checkpoints change. In doubt, everything of a checkpoint
stays. While something is removed, no run of the checkpoint can begin, because its turns are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from pydantic import ValidationError

from halos_eval.checkpoints.known import recall
from halos_eval.checkpoints.registry import Checkpoint, Listing
from halos_eval.config.cluster import Cluster
from halos_eval.config.suite import ALPACA_EVAL, load_suite, suite_names
from halos_eval.config.suite import NAME as SUITE_NAME
from halos_eval.digests import digest_json
from halos_eval.errors import DataUnavailable, HalosEvalError, StoreError
from halos_eval.planning.changes import judged_as
from halos_eval.planning.definition import Definitions, chained
from halos_eval.planning.plan import Plan, read_plan, suite_manifest
from halos_eval.stages import tools
from halos_eval.stages.identity import Identity
from halos_eval.storage import changes, filesystem, layout
from halos_eval.storage.claims import Busy, claimed, holder, process_alive, this_process
from halos_eval.storage.filesystem import Entry
from halos_eval.storage.records import CheckpointRef, Record, read_model, readable_record
from halos_eval.storage.result_files import digest_in, plain_name
from halos_eval.storage.series import AllSeries

READERS = 16  # threads: they wait for the store
STAGE = re.compile(r"sample|judge|harness\.[A-Za-z0-9][A-Za-z0-9_.-]*")
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
ORDER = "judge", "harness", "sample"
"""A judgement is removed before the outputs that it judges."""


class Retention(NamedTuple):
    """The rules for what stays."""

    before: datetime
    """UTC. Only what was last changed before this time is removed."""
    keep: int = 1
    """The newest results of each stage that stay, current or not; at least 1, because tables show the newest."""
    deleted_checkpoints: bool = False
    """Whether results of checkpoints that are not in the registry are removed."""


class Removal(NamedTuple):
    """Something to remove."""

    url: str
    """URL or path, for people."""
    size: int
    """Bytes."""
    reason: str
    """Why nobody needs it."""
    targets: tuple[str, ...]
    """URLs of files and folders, in the order in which they are removed."""
    claims: str | None = None
    """Folder of the claims of the processes that may work on it. It is removed, too."""

    def remove(self, before: datetime) -> None:
        """Remove it. If it is interrupted, the next call removes the rest. Raise Busy if it is in use, StoreError."""
        with claimed(self.claims, this_process()) if self.claims else nullcontext():
            if self.targets and _changed(_content(filesystem.tree(self.url))) > before:
                raise Busy(f"{self.url} was changed just now. Run it again later")
            for url in self.targets:
                filesystem.delete(url)
        filesystem.remove_empty(self.url)


class Found(NamedTuple):
    """What can be removed of a checkpoint, or of the cache."""

    removals: tuple[Removal, ...] = ()
    """In the order in which they are removed."""
    kept: str = ""
    """Why results stay that are not examined; empty if all were."""
    busy: bool = False
    """Whether an evaluation may be running."""


@dataclass(frozen=True)
class _Folder:
    """A folder of one stage's results: runs/CHECKPOINT/STAGE/FINGERPRINT."""

    stage: str
    """sample, judge or harness.TASK."""
    fingerprint: str
    url: str
    files: dict[str, Entry]
    """Its files by their path in it."""

    @property
    def tail(self) -> str:
        return f"{self.stage}/{self.fingerprint}"

    @property
    def prefix(self) -> str:
        """Start of the names of the record, the journal and the claims."""
        return "outputs." if self.stage == "sample" else ""

    @property
    def record_name(self) -> str:
        return self.prefix + layout.RECORD

    @property
    def claims(self) -> str:
        return layout.claims_beside(filesystem.join(self.url, self.record_name))

    @cached_property
    def changed(self) -> datetime:
        return _changed(_content(self.files) or self.files)

    @cached_property
    def record(self) -> Record | None:
        """Its record; None if there is none, or if it is damaged or of a newer version. Raise StoreError."""
        return readable_record(filesystem.join(self.url, self.record_name))[0]

    @property
    def unnamed(self) -> dict[str, Entry]:
        """Result files that no record names; none if a record cannot be read. Raise StoreError.

        The answers of a task that executes code have a record of their own.
        """
        found = {path: entry for path, entry in self.files.items() if digest_in(path)}
        finished = self.record_name in self.files
        if finished and len({plain_name(path) for path in self.files}) == len(self.files):
            return {}  # without reading the record: each file is there once
        records = [self.record] if finished else []
        if layout.GENERATED in self.files:
            records.append(readable_record(filesystem.join(self.url, layout.GENERATED))[0])
        if None in records:
            return {}
        named = {path for record in records if record for path in record.files}
        return {path: one for path, one in found.items() if path not in named}

    def below(self, name: str) -> dict[str, Entry]:
        return {path: entry for path, entry in self.files.items() if path.startswith(f"{name}/")}

    def removal(self, reason: str) -> Removal:
        """Return the removal of the whole folder: the record first, so that it never names missing files."""
        names = {path.partition("/")[0] for path in _content(self.files)}
        in_order = sorted(names, key=lambda name: (name != self.record_name, name))
        targets = tuple(filesystem.join(self.url, name) for name in in_order)
        return Removal(self.url, _size(self.files), reason, targets, self.claims)


class Pruner:
    """Finds and removes what nobody needs in the store ``root``."""

    def __init__(self, root: str, listing: Listing, cluster: Cluster, rules: Retention) -> None:
        """``listing`` has all checkpoints of the registry. Raise StoreError, also if the series cannot be read."""
        self.root, self.rules, self.skipped = root, rules, listing.skipped
        self.registered = {one.name: one for one in listing.checkpoints}
        self.planned = set(self._folders("plans"))
        manifests = {name.removesuffix(".json") for name in filesystem.entries(filesystem.join(root, "manifests"))}
        known = self.planned | {name for name in manifests if SUITE_NAME.fullmatch(name)}
        self.suites = sorted(known | set(self._folders("claims")))
        """Names of all suites that the store knows."""
        series = read_model(layout.series_url(root), AllSeries) or AllSeries()  # not one of a damaged list
        self.series = series.with_(tools.versions()).series
        self.unreadable: dict[str, str] = {}
        self.definitions = {suite: one for suite in sorted(known) if (one := self._definitions(suite, cluster))}

    def _folders(self, folder: str) -> list[str]:
        listed = filesystem.entries(filesystem.join(self.root, folder)).items()
        return [name for name, entry in listed if entry.is_folder and SUITE_NAME.fullmatch(name)]

    def _definitions(self, suite: str, cluster: Cluster) -> Definitions | None:
        """Return the suite as it is defined now; None if it is gone or unreadable."""
        if suite not in suite_names():
            return None
        try:
            return Definitions(load_suite(suite), suite_manifest(suite, self.root, cluster), root=self.root)
        except HalosEvalError as error:
            self.unreadable[suite] = str(error)
            return None

    def checkpoints(self, match: str = "*") -> list[str]:
        """Return the names of all checkpoints of which the store has something, sorted."""
        folders = ["runs", *(f"claims/{suite}" for suite in self.suites)]
        names = {name for folder in folders for name in filesystem.entries(filesystem.join(self.root, folder))}
        for folder in ("weights", *(f"plans/{suite}" for suite in self.suites)):
            listed = filesystem.entries(filesystem.join(self.root, folder))
            names |= {name.removesuffix(".json") for name in listed if name.endswith(".json")}
        names = {name.replace("__", "/") for name in names}
        return sorted(name for name in names if layout.NAME.fullmatch(name) and fnmatchcase(name, match))

    def survey(self, names: Iterable[str]) -> dict[str, Found]:
        """Return what can be removed of each checkpoint. Nothing is changed. Raise StoreError."""
        names = list(names)
        with ThreadPoolExecutor(READERS) as pool:
            return dict(zip(names, pool.map(self.find, names), strict=True))

    def remove(self, name: str, found: Found) -> Found:
        """Remove of one checkpoint what ``find`` has found, as far as it is still so; return what was removed.

        No run of the checkpoint can begin meanwhile. Raise StoreError.
        """
        if not found.removals:
            return found
        turns = dict.fromkeys(layout.turn_url(self.root, suite, name) for suite in self.suites)
        removed: list[Removal] = []
        try:
            with ExitStack() as stack:
                for turn in turns:
                    stack.enter_context(claimed(turn, this_process()))
                again = self.find(name)
                wanted = {one.url for one in found.removals} - turns.keys()
                for one in again.removals:
                    if one.url in wanted:
                        self._remove(name, one)
                        removed.append(one)
        except Busy as error:
            return Found(tuple(removed), str(error), busy=True)
        if name not in self.registered:
            stages = {one.url.rpartition("/")[0] for one in removed if one.claims}
            for url in (*stages, layout.runs_url(self.root, name)):
                filesystem.remove_empty(url)
        removed += [one for one in found.removals if one.url in turns]
        return Found(tuple(removed), again.kept, again.busy)

    def _remove(self, name: str, one: Removal) -> None:
        """Remove it. If it is a plan, the checkpoint's row goes as well, wherever this process is killed."""
        plans = [suite for suite in self.planned if one.url == layout.plan_url(self.root, suite, name)]
        for suite in plans:
            changes.note(self.root, suite, name)
        one.remove(self.rules.before)
        for suite in plans:
            changes.note(self.root, suite, name)

    def find(self, name: str) -> Found:
        """Return what can be removed of one checkpoint. Raise StoreError."""
        try:
            return self._find(name)
        except StoreError as error:
            if isinstance(error.__cause__, ValidationError):  # a damaged document, or one of a newer version
                return Found(kept=str(error), busy=True)
            raise

    def _find(self, name: str) -> Found:
        runs = layout.runs_url(self.root, name)
        turns = [layout.turn_url(self.root, suite, name) for suite in self.suites]
        if linked := [url for url in (runs, *turns) if not filesystem.inside(self.root, url)]:
            return Found(kept=f"{linked[0]} is, or is below, a link; links are not followed", busy=True)
        folders = list(_stages(runs))
        if owner := self._owner(turns, folders):
            return Found(kept=f"{owner} is at work", busy=True)
        removals, kept = self._results(name, folders)
        gone = {one.url for one in removals}
        removals += [one for folder in folders if folder.url not in gone for one in self._leftovers(folder)]
        return Found((*removals, *self._turns(turns)), kept)

    def _owner(self, turns: Iterable[str], folders: Iterable[_Folder]) -> str | None:
        """Return a process or a run that may be at work on the checkpoint."""
        me, now = this_process(), datetime.now(UTC)
        # A run may be longer than the lease of its turn, which is not extended.
        owners = [holder(turn, process_alive) for turn in turns]
        longer = [holder(turn, process_alive, min(self.rules.before, now)) for turn in turns]
        owners += [owner for owner in longer if owner and owner.startswith("run ")]
        owners += [holder(one.claims, process_alive) for one in folders if one.below(f"{one.prefix}claims")]
        return next((owner for owner in owners if owner not in {None, me}), None)

    def _results(self, name: str, folders: Sequence[_Folder]) -> tuple[list[Removal], str]:
        """Return the results to remove, and why others are not examined."""
        if not folders and name in self.registered:
            return [], ""
        if name in self.skipped:
            return [], f"skipped by the registry: {self.skipped[name]}"
        if name in self.registered:
            return self._outdated(self.registered[name], folders)
        if not self.rules.deleted_checkpoints:
            return [], "not in the registry: its results stay without --deleted-checkpoints"
        return self._all(name, folders)

    def _all(self, name: str, folders: Sequence[_Folder]) -> tuple[list[Removal], str]:
        """Return everything of a deleted checkpoint. Without its plans it has no row."""
        plans = [layout.plan_url(self.root, suite, name) for suite in sorted(self.planned)]
        files = {}
        for url in (*plans, layout.copy_url(self.root, name), layout.weights_url(self.root, name)):
            folder, _, file = url.rpartition("/")
            entry = filesystem.entries(folder).get(file)
            if entry and filesystem.inside(self.root, url):
                files[url] = entry
        if any(changed > self.rules.before for changed in (_changed(files), *(one.changed for one in folders))):
            return [], "not in the registry, but changed lately"
        reason = "its checkpoint is not in the registry"
        single = {url: Removal(url, entry.size, reason, (url,)) for url, entry in files.items()}
        weights = single.pop(layout.weights_url(self.root, name), None)
        return [*single.values(), *(one.removal(reason) for one in folders), *([weights] if weights else [])], ""

    def _outdated(self, checkpoint: Checkpoint, folders: Sequence[_Folder]) -> tuple[list[Removal], str]:
        """Return the results that no suite defines any more, except the newest of each stage."""
        known = recall(self.root, checkpoint.name, checkpoint.location, checkpoint.revision)
        if known is None or not known.unchanged:
            return [], "its weights are not those of the latest plan: plan or evaluate it, then run this again"
        plans = {suite: plan for suite in self.planned if (plan := self._plan(suite, checkpoint.name))}
        if unreadable := sorted(plans.keys() & self.unreadable.keys()):
            return [], f"suite {unreadable[0]} is unreadable: {self.unreadable[unreadable[0]]}"
        reference = CheckpointRef(name=checkpoint.name, location=checkpoint.location, digest=known.digest)
        current = {tail for plan in plans.values() for tail in self._of_plan(plan)}
        for definitions in self.definitions.values():
            try:
                current |= set(self._of_suite(definitions, checkpoint, reference))
            except HalosEvalError as error:
                return [], f"suite {definitions.suite.name} cannot be planned: {error}"
        old: list[_Folder] = []
        for stage, ones in groupby(folders, lambda one: one.stage):
            old += [] if stage in current else self._old(list(ones), current)
        if any(one.stage == "sample" for one in old):
            judged = {_outputs(one.record) for one in folders if one.stage == "judge" and one not in old and one.record}
            old = [one for one in old if one.stage != "sample" or one.fingerprint not in judged]
        return [one.removal(_why(one)) for one in old], ""

    def _plan(self, suite: str, name: str) -> Plan | None:
        return read_plan(layout.plan_url(self.root, suite, name))

    def _of_plan(self, plan: Plan) -> Iterator[str]:
        """Yield STAGE/FINGERPRINT of the results that a plan names, in all series."""
        for job in (*plan.jobs, *plan.trials):
            yield _tail(job.stage, job.task, job.fingerprint)
        parts = {job.part for job in plan.jobs}
        for part in parts:
            yield from self._in_all_series([job.identity for job in plan.jobs if job.part == part and job.identity])

    def _of_suite(self, definitions: Definitions, checkpoint: Checkpoint, reference: CheckpointRef) -> Iterator[str]:
        """Yield STAGE/FINGERPRINT of the results that are current, or STAGE if that cannot be known now."""
        for part in definitions.suite.parts:
            try:
                yield from self._in_all_series(definitions.identities(part, checkpoint.metadata, reference))
            except DataUnavailable:
                yield from ("sample", "judge") if part == ALPACA_EVAL else (f"harness.{part}",)

    def _in_all_series(self, identities: Sequence[Identity]) -> Iterator[str]:
        for series in self.series:
            for one in chained(identities, series.tools):
                yield _tail(one.stage, one.task, one.fingerprint_with(series.tools))

    def _old(self, ones: Sequence[_Folder], current: set[str]) -> list[_Folder]:
        """Return the folders of one stage that can be removed. Records that this version cannot read stay."""
        old = [one for one in ones if one.tail not in current and one.changed < self.rules.before]
        if not old:
            return []
        # The table shows the newest record, of each judge; of equal ones, the first by name.
        finished = [one for one in sorted(ones, key=lambda one: one.url) if one.record]
        finished.sort(key=_ended, reverse=True)
        by_judge: dict[str, list[_Folder]] = {}
        for one in finished:
            by_judge.setdefault(_judge(one), []).append(one)
        newest = [one for own in by_judge.values() for one in own[: self.rules.keep]]
        return [one for one in old if one not in newest and (one.record or one.record_name not in one.files)]

    def _leftovers(self, folder: _Folder) -> Iterator[Removal]:
        """Yield the journal and the claims of a run that has ended, and files that no record names."""
        claims = folder.claims
        for name, kind in ((f"{folder.prefix}parts", "journal"), (f"{folder.prefix}claims", "claim")):
            files = folder.below(name)
            if files and _changed(files) < self.rules.before:
                url = filesystem.join(folder.url, name)
                targets = () if url == claims else (url,)
                yield Removal(url, _size(files), f"{kind} of a run that has ended", targets, claims)
        unnamed = folder.unnamed
        if unnamed and folder.changed < self.rules.before:
            urls = tuple(filesystem.join(folder.url, name) for name in unnamed)
            yield Removal(folder.url, _size(unnamed), "results of another run, which no record names", urls, claims)

    def _turns(self, turns: Iterable[str]) -> Iterator[Removal]:
        for turn in turns:
            files = filesystem.tree(turn)
            if files and _changed(files) < self.rules.before:
                yield Removal(turn, _size(files), "claim of a run that has ended", (), turn)


def _stages(runs: str) -> Iterator[_Folder]:
    """Yield the folders of results below ``runs``, by stage. Other files and folders are not ours."""
    folders: dict[tuple[str, str], dict[str, Entry]] = {}
    for path, entry in filesystem.tree(runs).items():
        stage, _, rest = path.partition("/")
        fingerprint, _, file = rest.partition("/")
        if file and STAGE.fullmatch(stage) and FINGERPRINT.fullmatch(fingerprint):
            folders.setdefault((stage, fingerprint), {})[file] = entry
    for stage, fingerprint in sorted(folders, key=lambda key: (ORDER.index(key[0].partition(".")[0]), key)):
        url = filesystem.join(runs, stage, fingerprint)
        yield _Folder(stage, fingerprint, url, folders[stage, fingerprint])


def _tail(stage: str, task: str | None, fingerprint: str) -> str:
    return f"{stage}.{task}/{fingerprint}" if task else f"{stage}/{fingerprint}"


def _outputs(judged: Record) -> str:
    """Return the fingerprint of the sample stage whose outputs were judged."""
    return str(judged.identity.get("inputs", {}).get("outputs"))


def _ended(folder: _Folder) -> datetime:
    return folder.record.provenance.ended if folder.record else datetime.min.replace(tzinfo=UTC)


def _judge(folder: _Folder) -> str:
    """Return what tells the judges of results apart; empty for other stages."""
    return digest_json(judged_as(folder.record)) if folder.record and folder.stage == "judge" else ""


def _why(folder: _Folder) -> str:
    if folder.record:
        return f"result of {folder.record.provenance.ended:%Y-%m-%d} that no suite defines any more"
    return "unfinished, and no suite defines it any more"


def _changed(files: dict[str, Entry]) -> datetime:
    """Return when the newest file was changed."""
    return max((one.modified for one in files.values() if one.modified), default=datetime.min.replace(tzinfo=UTC))


def _content(files: dict[str, Entry]) -> dict[str, Entry]:
    """Return the files of a folder of results, without claims."""
    return {path: one for path, one in files.items() if not path.startswith(("claims/", "outputs.claims/"))}


def _size(files: dict[str, Entry]) -> int:
    return sum(one.size for one in files.values())
