"""The weights of a checkpoint: a folder in Hugging Face format, a PEFT adapter, or a repository on a hub.

Errors are found before a GPU is used: folders that are not models, incomplete weights, other formats than safetensors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from halos_eval.checkpoints.safetensors import ADAPTER_CONFIG, check_weights, files_of, read_json, readable
from halos_eval.config.settings import FROZEN
from halos_eval.digests import digest_files, digest_json
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.hub import hub_errors
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm.config.lora.MaxLoRARanks
# Files that determine a model's outputs. README, optimizer state and this project's metadata do not.
SCORED = re.compile(
    r".*\.safetensors|.*\.safetensors\.index\.json|.*config\.json|token.*|vocab.*|merges\.txt|tekken\.json|"
    r"special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)|.*\.model"
)


class Stamp(NamedTuple):
    """A file's state, from which a change is seen without reading the file."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970."""
    inode: int
    """Another one if the file was replaced."""


class Weights(BaseModel):
    """The location and the digest of a checkpoint's weights."""

    model_config = FROZEN

    name: str
    """Short name for tables: the last part of the path that is not FINAL, as in HALOs."""
    model: str
    """Path of a folder with full weights, or a hub repository, for vLLM."""
    revision: str | None = None
    """Commit of the hub repository; None for a folder."""
    adapter: str | None = None
    """Path of the folder of a PEFT adapter that is applied to ``model``."""
    adapter_rank: int = 0
    """LoRA rank of the adapter, rounded up to one that vLLM supports; 0 without an adapter."""
    digest: str
    """SHA-256 over weights, configuration and tokenizer; the commit for a hub repository."""

    @property
    def tokenizer(self) -> str:
        """Location of the tokenizer and chat template: the adapter if it has its own, else the model."""
        if self.adapter and (Path(self.adapter) / "tokenizer_config.json").is_file():
            return self.adapter
        return self.model

    def reference(self, name: str | None, location: str) -> CheckpointRef:
        """Return the reference of records to the checkpoint at ``location``, with ``name`` or its short name."""
        return CheckpointRef(name=name or self.name, location=location, digest=self.digest)


def short_name(location: str) -> str:
    """Return HALOs' name of a model: the last part of its path that is not FINAL."""
    parts = [part for part in location.split("/") if part]
    return next((part for part in reversed(parts) if part != "FINAL"), location)


def inspect(model: str, revision: str | None = None, manifest: Manifest | None = None) -> Weights:
    """Check ``model``, a folder or NAMESPACE/NAME on the hub, and return its weights, as ``manifest`` pins them.

    Raises BadInput if it is incomplete or not a model, DataUnavailable if it does not exist.
    """
    _check_loadable(model)
    with readable(model):
        return _inspect(Path(model), model, revision, manifest)


def _check_loadable(model: str) -> None:
    if "://" in model:
        raise BadInput(
            f"{model} is in object storage; expected a folder, because vLLM loads weights from folders. Copy them to "
            "a folder that the evaluation can read, and use its path"
        )


def _inspect(folder: Path, model: str, revision: str | None, manifest: Manifest | None) -> Weights:
    if not folder.exists():
        return _inspect_fetched(model, revision, manifest) if manifest else _inspect_hub(model, revision)
    if not folder.is_dir():
        raise BadInput(f"{model} is a file; expected the folder with config.json and *.safetensors")
    if (folder / ADAPTER_CONFIG).is_file():
        return _inspect_adapter(folder, manifest)
    check_weights(model, files_of(model))
    return Weights(name=short_name(model), model=model, digest=_digest_scored(folder))


def scored_files(folder: Path) -> dict[str, Stamp]:
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


def _inspect_adapter(folder: Path, manifest: Manifest | None) -> Weights:
    config = read_json(str(folder / ADAPTER_CONFIG))
    base = config.get("base_model_name_or_path")
    if config.get("peft_type") != "LORA" or not base:
        raise BadInput(
            f"{folder}/{ADAPTER_CONFIG}: adapter is not supported; expected peft_type LORA and base_model_name_or_path"
        )
    if (Path(str(base)) / ADAPTER_CONFIG).is_file():
        raise BadInput(f"{folder}: its base {base} is an adapter itself. Merge the base into full weights first")
    check_weights(str(folder), files_of(str(folder)))
    own = _digest_scored(folder)
    weights = inspect(str(base), config.get("revision"), manifest)
    return weights.model_copy(
        update={
            "name": short_name(str(folder)),
            "adapter": str(folder),
            "adapter_rank": _supported_rank(config.get("r"), folder),
            "digest": digest_json({"base": weights.digest, "adapter": own}),
        }
    )


def _supported_rank(rank: object, folder: Path) -> int:
    """Return the smallest rank of vLLM that is at least ``rank``. Raises BadInput."""
    fitting = [limit for limit in VLLM_LORA_RANKS if isinstance(rank, int) and 0 < rank <= limit]
    if not fitting:
        raise BadInput(
            f"{folder}/{ADAPTER_CONFIG}: LoRA rank {rank} is not supported by vLLM; expected 1 to {VLLM_LORA_RANKS[-1]}"
        )
    return fitting[0]


def hub_model(model: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Return the hub repository and the revision of the weights of ``model`` or, for an adapter, of its base.

    None if the weights are in a folder. Raises BadInput.
    """
    if not Path(model).exists():
        return _check_repository(model), revision
    adapter = Path(model) / ADAPTER_CONFIG
    if not adapter.is_file():
        return None
    config = read_json(str(adapter))
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


def _inspect_fetched(repo: str, revision: str | None, manifest: Manifest) -> Weights:
    item = manifest.find("model", hub_name(_check_repository(repo), revision))
    # The path of the folder, not the repository, so that vLLM and transformers send no requests to the hub.
    return Weights(name=short_name(repo), model=str(item.location), digest=f"hub:{item.revision}")


def _inspect_hub(repo: str, revision: str | None) -> Weights:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    _check_repository(repo)
    try:
        info = HfApi().model_info(repo, revision=revision)
    except HFValidationError as error:
        raise BadInput(f"{repo} is neither a folder nor a hub repository ({error}). Check its spelling") from error
    except hub_errors() as error:
        raise DataUnavailable(
            f"{repo} is not a folder, and is unavailable on the hub ({type(error).__name__}). Check its spelling, "
            "HF_ENDPOINT, and HF_TOKEN if it is gated"
        ) from error
    if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or []):
        raise BadInput(f"{repo} has no safetensors weights. Convert them: other formats are not loaded")
    return Weights(name=short_name(repo), model=repo, revision=info.sha, digest=f"hub:{info.sha}")
