"""Fetch the data that lm_eval and AlpacaEval request into the cache, at pinned commits, as items of a manifest."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos_eval import hub
from halos_eval.checkpoints import weights
from halos_eval.checkpoints.files import SCORED
from halos_eval.data import nltk as nltk_data
from halos_eval.data import prompts
from halos_eval.data.intercept import on_hub, request
from halos_eval.digests import digest_file, digest_json
from halos_eval.errors import DataUnavailable, HalosEvalError, Incomplete
from halos_eval.storage.manifest import Item, digest_stored

if TYPE_CHECKING:
    from datasets import DatasetBuilder
    from evaluate.loading import ImportableModule


class Fetcher:
    """The fetcher of data for one part at a time, and a Source for lm_eval's tasks."""

    def __init__(self, pins: dict[str, str]) -> None:
        self.pins = pins
        """Commit of each branch, as TYPE/REPO@BRANCH. Existing pins stay; new ones are added."""
        self._items: dict[tuple[str, str], Item] = {}
        self._builders: dict[str, DatasetBuilder] = {}
        self._failed: list[Exception] = []
        self._imported: set[str] = set()

    def begin(self, part: str) -> None:
        """Begin with another part of the suite, which needs everything that is requested from now on."""
        self.part = part
        self._items, self._builders, self._failed = {}, {}, []
        # Modules that load data when they are imported must do so again for this part.
        for module in self._imported:
            _forget(module)
        self._imported = set()
        if loaded := sys.modules.get("nltk.data"):
            loaded.path[:] = [path for path in loaded.path if path != str(nltk_data.folder())]

    def items(self) -> list[Item]:
        """Return the items that the part has requested, now in the cache. Raises the first error of fetching."""
        if self._failed:
            raise self._failed[0]  # lm_eval only logs that a metric is missing, and fails when it scores
        for asked, builder in self._builders.items():
            self._add_dataset(asked, builder)
        return list(self._items.values())

    def commit(self, kind: hub.RepoType, repo: str, branch: str | None = None) -> str:
        """Return the pinned commit of a branch. Raises DataUnavailable, Incomplete."""
        key = f"{kind}/{repo}@{branch or 'main'}"
        if key not in self.pins:
            self.pins[key] = hub.commit(kind, repo, branch)
        return self.pins[key]

    def _add(self, kind: Any, asked: str, path: Path, **known: Any) -> None:
        stored = None if kind == "model" else digest_stored(path)
        self._items[kind, asked] = Item(
            kind=kind, asked=asked, path=hub.below_cache(path), needed_by=(self.part,), stored=stored, **known
        )

    def file(self, filename: str) -> None:
        """Fetch a file of AlpacaEval's dataset."""
        commit = self.commit("dataset", prompts.HUB_REPO)
        path, _ = prompts.hub_file(filename, commit)
        size, digest = path.stat().st_size, digest_file(path)
        self._add("file", filename, path, repo=prompts.HUB_REPO, revision=commit, bytes=size, digest=digest)

    def model(self, repo: str, revision: str | None) -> None:
        """Fetch the weights, configuration and tokenizer of a model on the hub."""
        from huggingface_hub import HfApi, snapshot_download

        commit = self.commit("model", repo, revision)
        weights.inspect(repo, commit)
        names = [name for name in HfApi().list_repo_files(repo, revision=commit) if SCORED.fullmatch(name)]
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=names))
        size = sum((folder / name).stat().st_size for name in names)
        asked = weights.hub_name(repo, revision)
        self._add("model", asked, folder, repo=repo, revision=commit, bytes=size, digest=commit)

    def dataset(
        self, build: Callable[..., DatasetBuilder], path: str, name: str | None, options: dict[str, Any]
    ) -> DatasetBuilder:
        """Return the builder of a dataset at its pinned commit."""
        asked = request(path, name, options)
        if on_hub(path):
            commit = self.commit("dataset", path, options.get("revision"))
            builder = build(path, name, **options | {"revision": commit})
            if builder.hash != commit:  # datasets falls back to its latest cached version
                raise Incomplete(f"the dataset {path} was not downloaded at commit {commit}. Run the command again")
        else:
            builder = build(path, name, **options)
        if any("://" in url for urls in (builder.config.data_files or {}).values() for url in urls):
            self._remember_imports()
            self._builders[asked] = builder
        return builder

    def _add_dataset(self, asked: str, builder: DatasetBuilder) -> None:
        builder.download_and_prepare()  # does nothing unless the task streams its data
        splits = builder.config.data_files.items()
        raw = {split: [_raw_file(url, builder) for url in urls] for split, urls in splits}
        files = {file for files in raw.values() for file in files if file}
        content = {
            "splits": {split: [digest_file(file) if file else builder.hash for file in raw[split]] for split in raw},
            "features": builder.info.features and builder.info.features.to_dict(),
        }
        self._add(
            "dataset",
            asked,
            Path(builder.cache_dir),
            repo=builder.repo_id or builder.dataset_name,
            revision=builder.hash,
            bytes=sum(file.stat().st_size for file in files),
            digest=digest_json(content),
        )

    def metric(self, find: Callable[..., ImportableModule], name: str, options: dict[str, Any]) -> ImportableModule:
        """Return a metric script at its pinned commit."""
        import evaluate.config
        from evaluate.loading import HubEvaluationModuleFactory

        if Path(name).exists():
            return find(name, **options)
        self._remember_imports()
        try:
            repo, commit = self._metric_repository(name)
            module = HubEvaluationModuleFactory(repo, revision=commit).get_module()
        except Exception as error:
            self._failed.append(error)
            raise
        folder = Path(evaluate.config.HF_MODULES_CACHE, *module.module_path.split(".")[:-1])
        size = sum(file.stat().st_size for file in folder.glob("*.py"))
        self._add("metric", name, folder, repo=repo, revision=commit, bytes=size, digest=module.hash)
        return module

    def _metric_repository(self, name: str) -> tuple[str, str]:
        """Return the space of a metric and its commit. A name without a namespace may be in one of three namespaces."""
        kinds = ("metric", "comparison", "measurement")
        absent = []
        for repo in [name] if "/" in name else [f"evaluate-{kind}/{name}" for kind in kinds]:
            try:
                return repo, self.commit("space", repo)
            except DataUnavailable as error:
                absent.append(error)
        raise absent[0]

    def nltk(self, download: Callable[..., bool], package: str) -> bool:
        """Fetch a package of NLTK's data, which has no revisions."""
        import nltk.data

        self._remember_imports()
        try:
            archive = nltk_data.fetch(download, package)
        except HalosEvalError as error:
            self._failed.append(error)
            raise
        nltk.data.path.append(str(nltk_data.folder()))
        size, digest = archive.stat().st_size, digest_file(archive)
        self._add("nltk", package, archive, repo="nltk_data", revision=None, bytes=size, digest=digest)
        return True

    def _remember_imports(self) -> None:
        """Remember the modules of tasks that are being imported."""
        frame = inspect.currentframe()
        while frame:
            module = str(frame.f_globals.get("__name__"))
            if frame.f_code.co_name == "<module>" and module.startswith(("lm_eval.tasks.", "/")):
                self._imported.add(module)
            frame = frame.f_back


def _forget(module: str) -> None:
    """Make the next import of a module execute it again, also ``from PACKAGE import MODULE``."""
    sys.modules.pop(module, None)
    package, _, name = module.rpartition(".")
    if package in sys.modules:
        vars(sys.modules[package]).pop(name, None)


def _raw_file(url: str, builder: DatasetBuilder) -> Path | None:
    """Return the cached path of a file on the hub; None for files of other sources."""
    from huggingface_hub import hf_hub_download

    prefix = f"hf://datasets/{builder.repo_id}@{builder.hash}/"
    if not url.startswith(prefix):
        return None
    return Path(hf_hub_download(builder.repo_id, url.removeprefix(prefix), repo_type="dataset", revision=builder.hash))
