"""Fetch and pin the data that a suite needs, and report what is unavailable, before a GPU is used.

Each lm_eval task is loaded as the harness stage loads it, and scores one document with dummy answers. Everything that
the task requests is fetched at the current commit of its branch and recorded. GPU pods then run with the hub switched
off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from halos_eval import hub
from halos_eval.checkpoints import weights
from halos_eval.checkpoints.download import cached_copy, copied
from halos_eval.checkpoints.judge_weights import to_fetch
from halos_eval.config.cluster import WEIGHTS_GIB
from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL, AlpacaEvalSettings, Suite, load_suite
from halos_eval.data import prompts
from halos_eval.data.fetcher import Fetcher
from halos_eval.data.intercept import answered_by
from halos_eval.digests import digest_json
from halos_eval.errors import BadInput, DataUnavailable, HalosEvalError, Incomplete
from halos_eval.stages.harness.options import HarnessConfig, harness_identity
from halos_eval.stages.harness.task_index import task_manager
from halos_eval.stages.harness.tasks import include_paths, load_tasks, rehearse
from halos_eval.stages.run import disk_full, named
from halos_eval.storage import layout
from halos_eval.storage.layout import safe_name
from halos_eval.storage.manifest import Item, Manifest, Part, checkpoint_part, read_manifest, write_manifest
from halos_eval.storage.records import CheckpointRef, update_model

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)


class _Need(NamedTuple):
    """A part of the suite, or a checkpoint, whose data is fetched."""

    title: str
    definition: str
    """Digest of the settings that determine which items it needs."""
    fetch: Callable[[Fetcher], None]


class FetchConfig(BaseModel):
    """Fetch the data of SUITE into the cache (HF_HOME), and those models of CHECKPOINTS that are on the hub or in s3://."""

    model_config = FROZEN

    suite: CliPositionalArg[str]
    """Name or file of a suite."""
    checkpoints: CliPositionalArg[tuple[str, ...]] = ()
    """Folders or s3:// URLs of checkpoints or of LoRA adapters, or NAMESPACE/NAME[@REVISION] on the hub."""
    manifest: str = "manifest.json"
    """File or URL to write. Commits that it already pins stay pinned."""
    tasks: tuple[str, ...] = Field(())
    """Only these parts of the suite: alpaca_eval or names of tasks (default: all)."""
    store: str | None = None
    """Folder or object storage with all results: the plan finds there what the copy of an s3:// checkpoint contains."""
    name: str | None = None
    """Name of the checkpoint in the store (default: the last part of its path that is not FINAL)."""
    weights_gib: int = Field(WEIGHTS_GIB, ge=1)
    """GiB that copies of s3:// checkpoints may take in the cache; the least recently used ones are removed."""


def fetch(config: FetchConfig) -> Manifest:
    """Run the stage. The manifest lists unavailable parts with the reason; other parts are unaffected.

    Raise BadInput, StoreError, Incomplete if the hub was out of reach for some part (a retry can help), and
    DataUnavailable if every part is unavailable.
    """
    suite = load_suite(config.suite).keep(list(config.tasks))
    manifest = read_manifest(config.manifest) or Manifest(suite=suite.name)
    hosted = [one for one in config.checkpoints if not weights.in_storage(one) or weights.to_fetch(one)]
    needs = [*_parts(suite), *map(_checkpoint, hosted)]
    fetcher = Fetcher(dict(manifest.pins))
    unreached = []
    for need in needs:
        if manifest.ready(need.title, need.definition):
            continue
        log.info("fetching %s", need.title)
        items, error = _try(need, fetcher)
        reason = None if error is None else " ".join(str(error).split())
        if error is not None:
            log.warning("%s is unavailable: %s", need.title, reason)
            unreached += [need.title] if hub.out_of_reach(error) else []
        manifest = _with(manifest, need.title, Part(definition=need.definition, reason=reason), items)
    manifest = manifest.model_copy(update={"pins": fetcher.pins})
    write_manifest(config.manifest, manifest)
    reasons = {title: why for title in (need.title for need in needs) if (why := manifest.parts[title].reason)}
    # After the manifest is written: data that is pinned does not depend on this checkpoint.
    for location in filter(weights.in_storage, config.checkpoints):
        _copy(location, suite.name, config)
    if unreached:
        raise Incomplete(
            f"{', '.join(unreached)}: {reasons[unreached[0]]}. Run it again; items already fetched are kept"
        )
    if len(reasons) == len(needs):
        raise DataUnavailable("; ".join(f"{title}: {why}" for title, why in reasons.items()))
    return manifest


def _copy(location: str, suite: str, config: FetchConfig) -> None:
    """Copy a checkpoint in object storage into the cache, and describe the copy in the store."""
    name = config.name or safe_name(weights.short_name(location))
    turn = layout.turn_url(config.store, suite, name) if config.store else None
    copy = copied(location.rstrip("/"), config.weights_gib, turn)
    log.info("%s is in %s", location, cached_copy(copy))
    if config.store:
        update_model(layout.copy_url(config.store, name), copy)


def unfetched(suite: Suite, checkpoints: Iterable[str], manifest: Manifest) -> list[str]:
    """Return the parts of the suite, and the checkpoints, whose current definition is not in ``manifest``.

    This machine's cache is not checked. Raise BadInput.
    """
    needs = [*_parts(suite), *map(_checkpoint, checkpoints)]
    return [need.title for need in needs if manifest.parts.get(need.title) != Part(definition=need.definition)]


def _try(need: _Need, fetcher: Fetcher) -> tuple[list[Item], HalosEvalError | None]:
    """Return the items that a part needs, or the error if it is unavailable. Raise StoreError if the disk is full."""
    fetcher.begin(need.title)
    try:
        need.fetch(fetcher)
        return fetcher.items(), None
    except Exception as error:
        if disk_full(error):
            raise named(error) from error
        if isinstance(error, HalosEvalError):
            return [], error
        log.warning("%s: unexpected error", need.title, exc_info=True)
        failure = named(error)
        failure.__cause__ = error
        return [], failure


def _with(manifest: Manifest, title: str, part: Part, items: list[Item]) -> Manifest:
    """Return the manifest with ``items`` in place of those that ``title`` needed before."""
    merged: dict[tuple[str, str], Item] = {}
    for item in manifest.items:
        if others := tuple(name for name in item.needed_by if name != title):
            merged[item.kind, item.asked] = item.model_copy(update={"needed_by": others})
    for item in items:
        others = merged[item.kind, item.asked].needed_by if (item.kind, item.asked) in merged else ()
        merged[item.kind, item.asked] = item.model_copy(update={"needed_by": (*others, title)})
    return manifest.model_copy(
        update={
            "version": 3,
            "parts": {**manifest.parts, title: part},
            "items": tuple(merged[key] for key in sorted(merged)),
        }
    )


def _parts(suite: Suite) -> Iterator[_Need]:
    if suite.alpaca_eval:
        files = _files(suite.alpaca_eval)
        judges = [model for model in map(to_fetch, suite.alpaca_eval.judges) if model]
        yield _Need(ALPACA_EVAL, digest_json([*files, *judges]), partial(_fetch_alpaca_eval, files, judges))
    tasks = _Tasks(suite)
    anything = CheckpointRef(name="", location="", digest="")
    for task, settings in suite.tasks.items():
        definition = harness_identity(task, settings.harness(), suite.include_path, None, anything).fingerprint
        config = HarnessConfig(
            **settings.harness().model_dump(), model="", task=task, output_dir="", include_path=suite.include_path
        )
        yield _Need(task, definition, partial(tasks.fetch, config))


def _files(settings: AlpacaEvalSettings) -> list[str]:
    """Return the files of AlpacaEval's dataset that sampling and judging read."""
    kinds: list[prompts.HubFile] = ["prompts"] if settings.prompts == ALPACA_EVAL else []
    kinds += ["reference", "calibration"] if settings.reference == ALPACA_EVAL else []
    return [prompts.HUB_FILES[kind] for kind in kinds]


def _fetch_alpaca_eval(files: list[str], judges: list[tuple[str, str | None]], fetcher: Fetcher) -> None:
    for name in files:
        fetcher.file(name)
    for judge in judges:
        fetcher.model(*judge)


class _Tasks:
    """Loads a suite's tasks one by one. They share one task index, which is built on first use."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._manager: TaskManager | None = None

    def fetch(self, config: HarnessConfig, fetcher: Fetcher) -> None:
        with answered_by(fetcher):
            self._manager = self._manager or task_manager(self.suite.tasks, include_paths(self.suite.include_path))
            tasks = load_tasks(config, self._manager)
            if not config.confirm_unsafe_code:  # scoring would execute a dataset's code next to the hub token
                rehearse(config, self._manager, tasks)


def _checkpoint(location: str) -> _Need:
    def wanted() -> tuple[str, str | None] | None:
        if weights.in_storage(location) or Path(location).exists():
            return weights.hub_model(location)
        name, _, revision = location.partition("@")
        return weights.hub_model(name, revision or None)

    def fetch(fetcher: Fetcher) -> None:
        if model := wanted():
            fetcher.model(*model)

    try:
        definition = digest_json(wanted())
    except (BadInput, PermissionError) as error:
        definition = str(error)  # fetching raises it again, and it becomes this checkpoint's reason
    return _Need(checkpoint_part(location), definition, fetch)
