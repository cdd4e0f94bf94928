"""The command `halos-eval prune`: list what nobody needs any more, or remove it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, Field, model_validator

from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.cli.show import show_removals
from halos_eval.config.cluster import load_cluster
from halos_eval.config.settings import FROZEN, Settings
from halos_eval.errors import BadInput
from halos_eval.planning.prune import Found, Pruner, Retention
from halos_eval.planning.prune_cache import unused
from halos_eval.storage.claims import Busy


class PruneConfig(BaseModel):
    """List results of old definitions, and journals and claims of ended runs. With --delete, remove them.

    Nothing that a table of a suite, a plan or `halos-eval checkpoints` reads is removed.
    """

    model_config = FROZEN

    store: str = Field(default_factory=lambda: Settings().store)
    """Folder or object storage with all results."""
    delete: bool = False
    """Remove what is listed."""
    older_than: int = Field(30, ge=1)
    """Days for which everything stays after its last change."""
    keep: int = Field(1, ge=1)
    """Newest results of each stage of a checkpoint that stay, current or not."""
    match: str = "*"
    """Only checkpoints whose names match this pattern; * matches anything."""
    deleted_checkpoints: bool = False
    """Also everything of checkpoints that are not in the registry (HALOS_EVAL_CHECKPOINTS)."""
    cache: bool = False
    """Also fetched data and weights in HF_HOME that no manifest of this store names. No other store may use HF_HOME."""

    @model_validator(mode="after")
    def _whole(self) -> PruneConfig:
        if self.cache and self.match != "*":
            raise ValueError("--cache looks at all checkpoints; expected no --match")
        return self


def prune(config: PruneConfig) -> None:
    """List, or remove. Raise BadInput, StoreError, RegistryUnavailable."""
    settings = Settings()
    listing = open_registry(settings.checkpoints, settings.steps).registered()
    if config.deleted_checkpoints and not listing.checkpoints:
        raise BadInput(
            f"the registry {settings.checkpoints} has no checkpoint, so all results would be removed. Check "
            "HALOS_EVAL_CHECKPOINTS"
        )
    before = datetime.now(UTC) - timedelta(days=config.older_than)
    rules = Retention(before, config.keep, config.deleted_checkpoints)
    pruner = Pruner(config.store, listing, load_cluster(), rules)
    found = pruner.survey(pruner.checkpoints(config.match))
    if config.delete:
        found = {name: pruner.remove(name, one) for name, one in found.items()}
    if config.cache:
        found["HF_HOME"] = _cache(config, before, any(one.busy for one in found.values()))
    show_removals(found, config.delete)


def _cache(config: PruneConfig, before: datetime, busy: bool) -> Found:
    if busy:
        return Found(kept="evaluations may be running: the cache stays as it is. Run it again when none is")
    removals = unused(config.store, before)
    for number, one in enumerate(removals if config.delete else ()):
        try:
            one.remove(before)
        except Busy as error:
            return Found(tuple(removals[:number]), str(error), busy=True)
    return Found(tuple(removals))
