"""Interception of the three functions with which lm_eval's tasks fetch data while they are loaded and scored.

Tasks name their data in YAML, in groups and tags with many subtasks, or in Python. Metric scripts are loaded when a
task's module is imported, or only at scoring. All requests pass ``datasets.load_dataset``, ``evaluate.load`` or
``nltk.download``, so these are intercepted, and no task file is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datasets import DatasetBuilder
    from evaluate.loading import ImportableModule

# Options that say how a dataset is fetched, not which one.
MEANS = {"cache_dir", "download_config", "download_mode", "storage_options", "token"}


class Source(Protocol):
    """A source of lm_eval's data. The first argument of each method is the library's own function."""

    def dataset(
        self, build: Callable[..., DatasetBuilder], path: str, name: str | None, options: dict[str, Any]
    ) -> DatasetBuilder:
        """Return the builder of the dataset of ``load_dataset(path, name, **options)``."""

    def metric(self, find: Callable[..., ImportableModule], name: str, options: dict[str, Any]) -> ImportableModule:
        """Return the metric script of ``evaluate.load(name)``."""

    def nltk(self, download: Callable[..., bool], package: str) -> bool:
        """Provide a package of NLTK's data; return whether it is available."""


@contextmanager
def answered_by(source: Source) -> Iterator[None]:
    """Let ``source`` answer lm_eval's requests until the context ends."""
    import datasets.load
    import evaluate.loading
    import nltk

    # These names are looked up at each call, so requests of tasks that have imported load_dataset are intercepted too.
    build = datasets.load.load_dataset_builder
    find = evaluate.loading.evaluation_module_factory
    download = nltk.download
    datasets.load.load_dataset_builder = lambda path, name=None, **options: source.dataset(build, path, name, options)
    evaluate.loading.evaluation_module_factory = lambda path, **options: source.metric(find, path, options)
    nltk.download = lambda package=None, *_, **__: source.nltk(download, str(package))
    try:
        yield
    finally:
        datasets.load.load_dataset_builder = build
        evaluate.loading.evaluation_module_factory = find
        nltk.download = download


def request(path: str, name: str | None, options: dict[str, Any]) -> str:
    """Return the request of a dataset as canonical JSON."""
    asked = {key: value for key, value in options.items() if key not in MEANS and value is not None}
    return json.dumps({"path": path, "name": name, **asked}, sort_keys=True, default=str)


def on_hub(path: str) -> bool:
    """Return whether ``load_dataset(path)`` means a repository, not a format, such as json, or a folder."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return path not in _PACKAGED_DATASETS_MODULES and not Path(path).exists()
