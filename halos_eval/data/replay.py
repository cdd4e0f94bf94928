"""Give lm_eval only the data that a manifest pins.

Offline, ``datasets`` and ``evaluate`` use the latest cached version, whichever revision is requested. So this module
opens the folders that the manifest names. Nothing is written to them: locks and mapped tables go to a temporary folder.
So the cache may be mounted read-only and shared by all pods.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos_eval.data import nltk as nltk_data
from halos_eval.data.intercept import answered_by, on_hub, request
from halos_eval.storage.manifest import ADDED, Item, Manifest

if TYPE_CHECKING:
    from datasets import DatasetBuilder
    from evaluate.loading import ImportableModule


@contextmanager
def replayed(manifest: Manifest | None, task: str | None = None) -> Iterator[None]:
    """Give lm_eval its data from ``manifest`` until the context ends; without a manifest, from the hub as usual.

    Data is compared with its digest when it is opened; NLTK's packages for ``task`` at once, as NLTK opens them itself.
    """
    if manifest is None:
        yield
        return
    for item in manifest.needs(task) if task else ():
        if item.kind == "nltk":
            item.open()
    import datasets.config
    import evaluate.config
    import nltk

    before = datasets.config.HF_DATASETS_CACHE, evaluate.config.HF_METRICS_CACHE, list(nltk.data.path), list(sys.path)
    with tempfile.TemporaryDirectory(prefix="halos-eval-") as scratch:
        datasets.config.HF_DATASETS_CACHE = Path(scratch) / "datasets"
        evaluate.config.HF_METRICS_CACHE = Path(scratch) / "metrics"
        nltk.data.path.insert(0, str(nltk_data.folder()))
        try:
            with answered_by(_Replay(manifest, Path(scratch) / "datasets")):
                yield
        finally:
            datasets.config.HF_DATASETS_CACHE, evaluate.config.HF_METRICS_CACHE, nltk.data.path[:], sys.path[:] = before


class _Replay:
    def __init__(self, manifest: Manifest, scratch: Path) -> None:
        self.manifest, self.scratch = manifest, scratch

    def dataset(
        self, build: Callable[..., DatasetBuilder], path: str, name: str | None, options: dict[str, Any]
    ) -> DatasetBuilder:
        """Return a builder that reads the fetched tables. The suite's own files are read from their folder."""
        from datasets.packaged_modules.cache.cache import Cache

        asked = request(path, name, options)
        if not on_hub(path) and not self.manifest.look("dataset", asked):
            return build(path, name, **options)
        item = self.manifest.find("dataset", asked)
        folder = self._linked(item)
        return Cache(
            cache_dir=str(self.scratch),
            dataset_name=item.repo.rsplit("/", 1)[-1],
            repo_id=item.repo if "/" in item.repo else None,
            config_name=folder.parts[-3],
            version=folder.parts[-2],
            hash=folder.name,
        )

    def _linked(self, item: Item) -> Path:
        """Return NAME/CONFIG/VERSION/COMMIT in this process's temporary cache, with links to the fetched files."""
        fetched = item.open()
        folder = self.scratch.joinpath(*fetched.parts[-4:])
        folder.mkdir(parents=True, exist_ok=True)
        for file in fetched.iterdir():
            if file.is_file() and not ADDED.fullmatch(file.name) and not (folder / file.name).exists():
                (folder / file.name).symlink_to(file)
        return folder

    def metric(self, find: Callable[..., ImportableModule], name: str, options: dict[str, Any]) -> ImportableModule:
        """Return the fetched script, to be imported from a copy."""
        from evaluate.loading import ImportableModule

        if Path(name).exists():
            return find(name, **options)
        folder = self.manifest.find("metric", name).open()
        # A copy, because Python would execute a compiled module in the cache, which no digest covers.
        copy = self.scratch.parent / "modules" / folder.name
        shutil.copytree(folder, copy, ignore=_added, dirs_exist_ok=True)
        sys.path.insert(0, str(copy.parent))
        return ImportableModule(f"{folder.name}.{name.rsplit('/', 1)[-1]}", folder.name)

    def nltk(self, download: Callable[..., bool], package: str) -> bool:
        """Return whether the cache has the package. NLTK calls this only if it has not found the package there."""
        self.manifest.find("nltk", package).open()
        return True


def _added(_: str, names: list[str]) -> list[str]:
    return [one for one in names if ADDED.fullmatch(one)]
