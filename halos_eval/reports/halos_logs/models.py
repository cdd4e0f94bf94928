"""Which model a log is about: weights and adapter as lm_eval's header names them."""

from __future__ import annotations

import re
from typing import NamedTuple

from halos_eval.checkpoints.weights import short_name
from halos_eval.reports.names import candidates, clean

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
# A value in a list of arguments (a=b,c=d): in lm_eval's header, and in an echoed command.
_IN_HEADER, _IN_COMMAND = r"[^,]+", r"[^,\s'\")]+"
_LIMIT = re.compile(r"limit: ([0-9.]+)")
# Weights on top of the base model: PEFT's adapter (hf), vLLM's, and a difference of weights (hf).
_ADAPTERS = ("peft", "lora_local_path", "delta")
# Other arguments that select weights; models that differ in one of them are not the same.
_VARIANTS = ("revision", "subfolder", "gguf_file")


class Model(NamedTuple):
    """What a log says that its model is."""

    location: str
    """Folder or repository of the weights; that of the adapter if there is one. Or the name in a leaderboard."""
    base: str = ""
    """Weights that an adapter is applied to."""
    variant: str = ""
    """Revision (other than main) and file or folder inside the repository."""

    @property
    def names(self) -> list[str]:
        """Names from short to long, see `distinct`."""
        last = f"@{self.variant}" if self.variant else ""
        names = [f"{name}{last}" for name in candidates(short_name(self.location), self.location)]
        return [*names, f"{names[-1]} on {self.base}"] if self.base else names


def model_in_arguments(arguments: str, listed: str = _IN_HEADER) -> Model | None:
    """Return the model of lm_eval's model arguments, or None if they name none.

    Both styles are supported: ``pretrained=/a/b/FINAL,dtype=...`` and the printed dictionary of newer versions. Models
    behind an API have ``model`` instead of ``pretrained``. ``listed`` matches a value of the first style.
    """
    found = {
        key: value
        for key in ("pretrained", "model", *_VARIANTS, *_ADAPTERS)
        if (value := _argument(arguments, key, listed))
    }
    base = found.get("pretrained") or found.get("model")
    if base is None:
        return None
    variant = "/".join(found[key] for key in _VARIANTS if key in found and found[key] != "main")
    adapter = next((found[key] for key in _ADAPTERS if key in found), None)
    return Model(clean(adapter), clean(base), variant) if adapter else Model(clean(base), variant=variant)


def mentioned_model(line: str) -> Model | None:
    """Return the model that an echoed command, or lm_eval's "Initializing hf model, with arguments: ...", names.

    None if the line names none, or has a shell variable in place of it.
    """
    if _argument(line, "pretrained", _IN_COMMAND) is None:
        return None
    model = model_in_arguments(line, _IN_COMMAND)
    return model if model and "$" not in "".join(model) else None


def limit_in_header(rest: str) -> str | None:
    """Return lm_eval's limit in the rest of its header (documents, or a share below 1); None for a full run."""
    found = _LIMIT.search(rest)
    return f"{float(found[1]):g}" if found else None


def _argument(arguments: str, key: str, listed: str) -> str | None:
    in_dictionary = re.search(rf"""['"]{key}['"]\s*:\s*({_QUOTED})""", arguments)
    in_list = re.search(rf"(?<!\w){key}=({_QUOTED}|{listed})", arguments)
    found = in_dictionary or in_list
    return _unquoted(found[1]).strip() or None if found else None


def _unquoted(text: str) -> str:
    quoted = re.fullmatch(_QUOTED, text.strip())
    return re.sub(r"\\(.)", r"\1", quoted[0][1:-1]) if quoted else text
