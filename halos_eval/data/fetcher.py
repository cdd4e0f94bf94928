"""Fetch what lm_eval and AlpacaEval ask for into the cache, at pinned commits, and note it for the manifest."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos_eval import hub
from halos_eval.checkpoints import weights
from halos_eval.data import nltk as nltk_data
from halos_eval.data import prompts
from halos_eval.data.intercept import on_hub, request
from halos_eval.digests import digest_file, digest_json
from halos_eval.errors import DataUnavailable, HalosEvalError, Incomplete
from halos_eval.storage.manifest import Item

if TYPE_CHECKING:
    from datasets import DatasetBuilder
    from evaluate.loading import ImportableModule


class Fetcher:
    """Fetches for one part at a time. A Source for lm_eval's tasks."""

    def __init__(self, pins: dict[str, str]) -> None:
        self.pins = pins
        """Commit of each branch, as TYPE/REPO@BRANCH: what is in it stays, what is found out is added."""
        self._items: dict[tuple[str, str], Item] = {}
        self._builders: dict[str, DatasetBuilder] = {}
        self._failed: list[Exception] = []
        self._imported: set[str] = set()

    def begin(self, part: str) -> None:
        """Begin with another part of the suite: what is asked for from now on, it needs."""
        self.part = part
        self._items, self._builders, self._failed = {}, {}, []
        # A module that has loaded something when it was imported must do so again for this part.
        for module in self._imported:
            _forget(module)
        self._imported = set()
        if loaded := sys.modules.get("nltk.data"):
            loaded.path[:] = [place for place in loaded.path if place != str(nltk_data.folder())]

    def items(self) -> list[Item]:
        """All that the part has asked for, now in the cache. Raises what kept something from being fetched."""
        if self._failed:
            raise self._failed[0]  # lm_eval only logs that there is no such metric, and fails when it scores
        for asked, builder in self._builders.items():
            self._add_dataset(asked, builder)
        return list(self._items.values())

    def commit(self, kind: hub.RepoType, repo: str, branch: str | None = None) -> str:
        """The pinned commit of a branch. Raises DataUnavailable, Incomplete."""
        key = f"{kind}/{repo}@{branch or 'main'}"
        if key not in self.pins:
            self.pins[key] = hub.commit(kind, repo, branch)
        return self.pins[key]

    def _add(self, kind: Any, asked: str, path: Path, **known: Any) -> None:
        self._items[kind, asked] = Item(
            kind=kind, asked=asked, path=hub.below_cache(path), needed_by=(self.part,), **known
        )

    def file(self, filename: str) -> None:
        """A file of AlpacaEval's dataset."""
        commit = self.commit("dataset", prompts.HUB_REPO)
        path, _ = prompts.hub_file(filename, commit)
        size, digest = path.stat().st_size, digest_file(path)
        self._add("file", filename, path, repo=prompts.HUB_REPO, revision=commit, bytes=size, digest=digest)

    def model(self, repo: str, revision: str | None) -> None:
        """The weights, configuration and tokenizer of a model on the hub."""
        from huggingface_hub import HfApi, snapshot_download

        commit = self.commit("model", repo, revision)
        weights.inspect(repo, commit)
        names = [name for name in HfApi().list_repo_files(repo, revision=commit) if weights.SCORED.fullmatch(name)]
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=names))
        size = sum((folder / name).stat().st_size for name in names)
        asked = weights.hub_name(repo, revision)
        self._add("model", asked, folder, repo=repo, revision=commit, bytes=size, digest=commit)

    def dataset(
        self, build: Callable[..., DatasetBuilder], path: str, name: str | None, options: dict[str, Any]
    ) -> DatasetBuilder:
        """A dataset at its pinned commit."""
        asked = request(path, name, options)
        if on_hub(path):
            commit = self.commit("dataset", path, options.get("revision"))
            builder = build(path, name, **options | {"revision": commit})
            if builder.hash != commit:  # datasets falls back on what it has cached last
                raise Incomplete(f"the hub did not give the dataset {path} at {commit}: run it again")
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
        """A metric script at its pinned commit."""
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
        """The space of a metric, and its commit. A name alone may be in one of three, tried in this order."""
        kinds = ("metric", "comparison", "measurement")
        absent = []
        for repo in [name] if "/" in name else [f"evaluate-{kind}/{name}" for kind in kinds]:
            try:
                return repo, self.commit("space", repo)
            except DataUnavailable as error:
                absent.append(error)
        raise absent[0]

    def nltk(self, download: Callable[..., bool], package: str) -> bool:
        """A package of NLTK's data, which has no revisions."""
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
        """Note the modules of tasks that are being imported just now."""
        frame = inspect.currentframe()
        while frame:
            module = str(frame.f_globals.get("__name__"))
            if frame.f_code.co_name == "<module>" and module.startswith(("lm_eval.tasks.", "/")):
                self._imported.add(module)
            frame = frame.f_back


def _forget(module: str) -> None:
    """Let the next import of a module execute it again, also where it is imported from its package."""
    sys.modules.pop(module, None)
    package, _, name = module.rpartition(".")
    if package in sys.modules:
        vars(sys.modules[package]).pop(name, None)


def _raw_file(url: str, builder: DatasetBuilder) -> Path | None:
    """The file as it is on the hub, in the cache; None for one from elsewhere."""
    from huggingface_hub import hf_hub_download

    place = f"hf://datasets/{builder.repo_id}@{builder.hash}/"
    if not url.startswith(place):
        return None
    return Path(hf_hub_download(builder.repo_id, url.removeprefix(place), repo_type="dataset", revision=builder.hash))
