"""The weights of a checkpoint: a folder in Hugging Face format, a PEFT adapter, or a repository on a hub.

Errors are found before a GPU is used: folders that are not models, incomplete weights, other formats than safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from halos_eval import hub
from halos_eval.checkpoints.adapters import check_adapter, supported_rank
from halos_eval.checkpoints.architecture import Limits, check_output_layer, limits_of
from halos_eval.checkpoints.files import SCORED
from halos_eval.checkpoints.links import check_links
from halos_eval.checkpoints.safetensors import ADAPTER_CONFIG, Shapes, check_weights, files_of, read_json, readable
from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_files, digest_json
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.storage import filesystem
from halos_eval.storage.filesystem import Entry
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef


class Stamp(NamedTuple):
    """A file's state, from which a change is seen without reading the file."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970; 0 in object storage, where a copy of the same content has another time."""
    inode: int | str
    """Another one if the file was replaced; the ETag in object storage."""


Stamps = dict[str, Stamp]
"""Stamps of the files that determine a model's outputs, by name."""


class ScoredFolder(BaseModel):
    """A folder whose files were read."""

    model_config = FROZEN

    path: str
    """Path of the folder, or its s3:// URL."""
    stamps: Stamps
    """Result of ``stamps_of`` before the files were read."""
    digest: str
    """SHA-256 of the files."""

    @property
    def changed(self) -> bool:
        """Whether the folder has other content now. A removed folder has not: nothing else is loaded from it."""
        folder = Path(self.path)
        try:
            return folder.exists() and scored_files(folder) != self.stamps and _digest_scored(folder) != self.digest
        except FileNotFoundError:
            return folder.exists()


ReadFolder = Callable[[str], ScoredFolder]
"""Function like ``read_folder``; it may know the digest from before."""


class Weights(BaseModel):
    """The location and the digest of a checkpoint's weights."""

    model_config = FROZEN

    name: str
    """Short name for tables: the last part of the path that is not FINAL, as in HALOs."""
    model: str
    """Path of a folder with full weights, or a hub repository, for vLLM; the s3:// URL where the copy is not needed."""
    revision: str | None = None
    """Commit of the hub repository; None for a folder."""
    adapter: str | None = None
    """Path of the folder of a PEFT adapter that is applied to ``model``."""
    adapter_rank: int = 0
    """LoRA rank of the adapter, rounded up to one that vLLM supports; 0 without an adapter."""
    digest: str
    """SHA-256 over weights, configuration and tokenizer; the commit for a hub repository."""
    folders: tuple[ScoredFolder, ...] = ()
    """The folders that ``digest`` covers."""
    limits: Limits = Limits()
    """What vLLM requires of the GPUs and the length."""

    @property
    def tokenizer(self) -> str:
        """Location of the tokenizer and chat template: the adapter if it has its own, else the model."""
        if self.adapter and (Path(self.adapter) / "tokenizer_config.json").is_file():
            return self.adapter
        return self.model

    @property
    def size(self) -> int | None:
        """Bytes of the weight files, with the adapter's; None for a hub repository."""
        files = [file for folder in self.folders for file in folder.stamps.items()]
        return sum(stamp.size for name, stamp in files if name.endswith(".safetensors")) or None

    def reference(self, name: str | None, location: str) -> CheckpointRef:
        """Return the reference of records to the checkpoint at ``location``, with ``name`` or its short name."""
        return CheckpointRef(name=name or self.name, location=location, digest=self.digest)

    def check_unchanged(self) -> None:
        """Raise BadInput if a folder has other content than ``inspect`` has read. Compares times and sizes first."""
        for folder in self.folders:
            if folder.changed:
                raise BadInput(
                    f"{folder.path} was saved again while it was evaluated, so the scores may be those of other "
                    "weights; none are recorded. When it is saved, trigger the evaluation again"
                )


class _Found(NamedTuple):
    """Weights, and what their configuration and headers say."""

    weights: Weights
    config: dict[str, Any]
    shapes: Shapes


def short_name(location: str) -> str:
    """Return HALOs' name of a model: the last part of its path that is not FINAL."""
    parts = [part for part in location.split("/") if part]
    return next((part for part in reversed(parts) if part != "FINAL"), location)


def inspect(
    model: str,
    revision: str | None = None,
    manifest: Manifest | None = None,
    read: ReadFolder | None = None,
    root: str | None = None,
) -> Weights:
    """Check ``model``, a folder or NAMESPACE/NAME on the hub, and return its weights, as ``manifest`` pins them.

    Raises BadInput if it is incomplete or not a model, DataUnavailable if it does not exist.

    :param root: the folder of the registry, into which links may lead.
    """
    _check_loadable(model)
    with readable(model):
        return _inspect(model, revision, manifest, read or read_folder, root).weights


def in_storage(model: str) -> bool:
    """Return whether ``model`` is the URL of a folder in object storage, which has to be copied before it is loaded."""
    return model.startswith("s3://")


def _check_loadable(model: str) -> None:
    if "://" in model and not in_storage(model):
        raise BadInput(
            f"{model} cannot be read; expected a folder, s3://BUCKET/PREFIX or NAMESPACE/NAME on the hub. Copy the "
            "weights to one of these"
        )


def _exists(model: str) -> bool:
    return in_storage(model) or Path(model).exists()


def _inspect(model: str, revision: str | None, manifest: Manifest | None, read: ReadFolder, root: str | None) -> _Found:
    if not _exists(model):
        _check_cached(model)
        return _inspect_fetched(model, revision, manifest) if manifest else _inspect_hub(model, revision)
    if not in_storage(model) and not Path(model).is_dir():
        raise BadInput(f"{model} is a file; expected the folder with config.json and *.safetensors")
    check_links(model, root)
    files = files_of(model)
    if ADAPTER_CONFIG in files:
        return _inspect_adapter(model, files, manifest, read, root)
    config, shapes = _check_model(model, files)
    scored = read(model)
    weights = Weights(
        name=short_name(model), model=model, digest=scored.digest, folders=(scored,), limits=limits_of(config)
    )
    return _Found(weights, config, shapes)


def _check_model(url: str, files: Mapping[str, Entry]) -> tuple[dict[str, Any], Shapes]:
    """Return the configuration and the tensors of a full model. Raise BadInput if it cannot be evaluated."""
    shapes = check_weights(url, files)
    config = read_json(filesystem.join(url, "config.json"))
    check_output_layer(url, config, shapes)
    return config, shapes


def read_folder(folder: str) -> ScoredFolder:
    """Return a folder on a disk with the digest of its files that determine a model's outputs."""
    stamps = scored_files(Path(folder))
    return ScoredFolder(path=folder, stamps=stamps, digest=_digest_scored(Path(folder)))


def stamps_of(location: str) -> Stamps:
    """Return the stamps of a folder on a disk or in object storage. Raises FileNotFoundError, StoreError."""
    return stamps_of_objects(files_of(location)) if in_storage(location) else scored_files(Path(location))


def stamps_of_objects(files: Mapping[str, Entry]) -> Stamps:
    """Return the stamps of a folder in object storage with the entries ``files``."""
    return {
        name: Stamp(entry.size, 0, entry.state)
        for name, entry in sorted(files.items())
        if SCORED.fullmatch(name) and not entry.is_folder
    }


def state_of_stamps(stamps: Stamps) -> str:
    """Return a digest of the names, sizes and times of files on a disk, which are the same on all machines."""
    return digest_json({name: (stamp.size, stamp.modified) for name, stamp in stamps.items()})[:32]


def scored_files(folder: Path) -> Stamps:
    """Return the stamp of each file in ``folder`` that determines a model's outputs, by name; links are followed.

    As long as the stamps stay the same, so does the digest. Raises FileNotFoundError.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if SCORED.fullmatch(path.name) and path.is_file():
            status = path.stat()
            found[path.name] = Stamp(status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def _digest_scored(folder: Path) -> str:
    return digest_files(folder, list(scored_files(folder)))


def _inspect_adapter(
    path: str, files: Mapping[str, Entry], manifest: Manifest | None, read: ReadFolder, root: str | None
) -> _Found:
    config = read_json(filesystem.join(path, ADAPTER_CONFIG))
    base = config.get("base_model_name_or_path")
    if config.get("peft_type") != "LORA" or not base:
        raise BadInput(
            f"{path}/{ADAPTER_CONFIG}: adapter is not supported; expected peft_type LORA and base_model_name_or_path"
        )
    if (Path(str(base)) / ADAPTER_CONFIG).is_file():
        raise BadInput(f"{path}: its base {base} is an adapter itself. Merge the base into full weights first")
    shapes = check_weights(path, files)
    rank = supported_rank(path, config)
    _check_base(path, str(base))
    with readable(str(base)):
        found = _inspect(str(base), config.get("revision"), manifest, read, root)
    fused = "text_config" in found.config or "quantization_config" in found.config
    check_adapter(path, config, shapes, found.shapes, fused)
    own = read(path)
    adapted = {
        "name": short_name(path),
        "adapter": path,
        "adapter_rank": rank,
        "digest": digest_json({"base": found.weights.digest, "adapter": own.digest}),
        "folders": (*found.weights.folders, own),
    }
    return found._replace(weights=found.weights.model_copy(update=adapted))


def _check_base(adapter: str, base: str) -> None:
    if "://" in base:
        raise BadInput(
            f"{adapter}: its base {base} is in object storage; expected a folder or a hub repository. Copy the base to "
            "a folder and name that in base_model_name_or_path, or merge the adapter into full weights"
        )


def _check_cached(model: str) -> None:
    if Path(model).is_absolute() and Path(model).is_relative_to(cached_weights()):
        raise DataUnavailable(
            f"{model} is no longer in the cache: it was removed for others. Trigger the evaluation again; "
            "`fetch` copies it once more"
        )


def cached_weights() -> Path:
    """Return the folder of the cache with copies of weights from object storage."""
    return hub.cache_root() / "halos-eval" / "weights"


def hub_model(model: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Return the hub repository and the revision of the weights of ``model`` or, for an adapter, of its base.

    None if the weights are in a folder. Raises BadInput.
    """
    if not _exists(model):
        _check_cached(model)
        return _check_repository(model), revision
    if ADAPTER_CONFIG not in files_of(model):
        return None
    config = read_json(filesystem.join(model, ADAPTER_CONFIG))
    return hub_model(str(config.get("base_model_name_or_path")), config.get("revision"))


def _check_repository(repo: str) -> str:
    if repo.startswith(("/", ".")) or repo.count("/") != 1:
        raise BadInput(f"{repo} is neither a folder nor a hub repository (NAMESPACE/NAME). Check its spelling")
    return repo


def hub_name(repo: str, revision: str | None) -> str:
    """Return the key of a model in a manifest."""
    return f"{repo}@{revision}" if revision else repo


def to_fetch(model: str, revision: str | None = None) -> str | None:
    """Return the argument of `halos-eval fetch` for ``model``; None if all weights are in folders. Raises BadInput."""
    _check_loadable(model)
    with readable(model):
        return hub_name(model, revision) if hub_model(model, revision) else None


def check_fetched(model: str, revision: str | None, manifest: Manifest | None) -> None:
    """Raise DataUnavailable unless this machine's cache has the weights that ``manifest`` pins for ``model``."""
    if manifest and (wanted := hub_model(model, revision)):
        manifest.find("model", hub_name(*wanted)).open()


def _check_listing(repo: str, files: Mapping[str, Entry]) -> None:
    """Raise BadInput if a hub repository with these files has no full weights."""
    if ADAPTER_CONFIG in files:
        raise BadInput(
            f"{repo} is a LoRA adapter on the hub; expected full weights. Download it into a folder and evaluate that, "
            "or merge it into full weights with PEFT's merge_and_unload"
        )
    if not any(name.endswith(".safetensors") for name in files):
        raise BadInput(f"{repo} has no safetensors weights. Convert them: other formats are not loaded")


def _inspect_fetched(repo: str, revision: str | None, manifest: Manifest) -> _Found:
    item = manifest.find("model", hub_name(_check_repository(repo), revision))
    path = str(item.location)
    # Where plans are made, there may be no cache.
    config: dict[str, Any] = {}
    shapes: Shapes = {}
    if item.present:
        files = files_of(path)
        _check_listing(repo, files)
        config, shapes = _check_model(path, files)
    # The path of the folder, not the repository, so that vLLM and transformers send no requests to the hub.
    weights = Weights(name=short_name(repo), model=path, digest=f"hub:{item.revision}", limits=limits_of(config))
    return _Found(weights, config, shapes)


def _inspect_hub(repo: str, revision: str | None) -> _Found:
    from huggingface_hub.errors import HFValidationError

    _check_repository(repo)
    try:
        commit, sizes = hub.listing(repo, revision)
    except HFValidationError as error:
        raise BadInput(f"{repo} is neither a folder nor a hub repository ({error}). Check its spelling") from error
    except hub.hub_errors() as error:
        raise DataUnavailable(
            f"{repo} is not a folder, and is unavailable on the hub ({type(error).__name__}). Check its spelling, "
            "HF_ENDPOINT, and HF_TOKEN if it is gated"
        ) from error
    # The hub lists files without times.
    files = {name: Entry(size, datetime.min.replace(tzinfo=UTC)) for name, size in sizes.items()}
    _check_listing(repo, files)
    config: dict[str, Any] = {}
    shapes: Shapes = {}
    try:
        config, shapes = _check_model(hub.model_url(repo, commit), files)
    except DataUnavailable as error:
        if not hub.gated(error):  # the files of a gated repository need a token, which only the stages may have
            raise
    weights = Weights(
        name=short_name(repo), model=repo, revision=commit, digest=f"hub:{commit}", limits=limits_of(config)
    )
    return _Found(weights, config, shapes)
