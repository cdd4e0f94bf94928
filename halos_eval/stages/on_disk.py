"""Weights in object storage are copied into the cache before a stage loads them, and stay there while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from halos_eval.checkpoints.download import cached_copy, copied, reading
from halos_eval.checkpoints.weights import in_storage
from halos_eval.stages.options import ModelConfig

Config = TypeVar("Config", bound=ModelConfig)


@contextmanager
def on_disk(config: Config) -> Iterator[Config]:
    """Yield the options with a folder as MODEL, which is not removed from the cache while the context is open.

    A stage of a plan gets the folder of the copy, because `fetch` has made it. Raise BadInput, DataUnavailable,
    Incomplete, StoreError.
    """
    if in_storage(config.model):
        copy = copied(config.model)
        changes = {"model": cached_copy(copy), "location": config.model, "known": (f"{copy.state}:{copy.digest}",)}
        config = config.model_copy(update=changes)
    with reading(config.model):
        yield config
