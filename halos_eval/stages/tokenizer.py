"""The tokenizer of a checkpoint, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halos_eval.checkpoints.safetensors import ADAPTER_CONFIG, read_json
from halos_eval.checkpoints.weights import hub_model, in_storage
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.hub import hub_errors


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """Return the tokenizer of a folder, adapter or hub repository, without its weights.

    Raise BadInput, DataUnavailable.
    """
    if in_storage(model):
        raise BadInput(f"{model} is in object storage; expected a folder. Copy its tokenizer files to one")
    folder = Path(model)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "tokenizer_config.json").is_file():
        adapter = read_json(str(folder / ADAPTER_CONFIG))
        return load_tokenizer(str(adapter.get("base_model_name_or_path")), adapter.get("revision"))
    if not folder.exists():
        hub_model(model)  # rejects what is no name of a repository
    from transformers import AutoTokenizer

    unusable: tuple[type[Exception], ...] = (*hub_errors(), OSError, ValueError)
    try:
        return AutoTokenizer.from_pretrained(model, revision=revision or "main", trust_remote_code=False)
    except unusable as error:
        if folder.exists():
            raise BadInput(
                f"{model} has no usable tokenizer ({error}). Save the tokenizer beside the weights"
            ) from error
        raise DataUnavailable(
            f"the tokenizer of {model} is unavailable ({type(error).__name__}). Check its spelling, HF_ENDPOINT, and "
            "HF_TOKEN if it is gated"
        ) from error
