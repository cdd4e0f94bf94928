"""What lm_eval's tasks fetch while they are loaded and scored, seen at the three doors that it goes through.

Tasks name their data in YAML, in groups and tags with many leaves, or in Python; metric scripts are loaded when a
task's module is imported, or only at scoring. All of it passes ``datasets.load_dataset``, ``evaluate.load`` or
``nltk.download``, so these are watched, and no task file is read.
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

# Options that say where and how it is fetched, not what.
MEANS = {"cache_dir", "download_config", "download_mode", "storage_options", "token"}


class Source(Protocol):
    """Gives what lm_eval asks for. The first argument of each method is the library's own function."""

    def dataset(
        self, build: Callable[..., DatasetBuilder], path: str, name: str | None, options: dict[str, Any]
    ) -> DatasetBuilder:
        """A dataset as ``load_dataset(path, name, **options)`` asks for it."""

    def metric(self, find: Callable[..., ImportableModule], name: str, options: dict[str, Any]) -> ImportableModule:
        """A metric script as ``evaluate.load(name)`` asks for it."""

    def nltk(self, download: Callable[..., bool], package: str) -> bool:
        """A package of NLTK's data; whether it is there now."""


@contextmanager
def answered_by(source: Source) -> Iterator[None]:
    """Until the context ends, ``source`` gives what lm_eval asks for."""
    import datasets.load
    import evaluate.loading
    import nltk

    # These names are looked up at each call, so tasks that have imported load_dataset itself come here as well.
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
    """A dataset that is asked for, as canonical JSON."""
    asked = {key: value for key, value in options.items() if key not in MEANS and value is not None}
    return json.dumps({"path": path, "name": name, **asked}, sort_keys=True, default=str)


def on_hub(path: str) -> bool:
    """Whether ``load_dataset(path)`` means a repository: neither a format, such as json, nor a folder."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return path not in _PACKAGED_DATASETS_MODULES and not Path(path).exists()
