"""Prompts and reference outputs: a JSON list of objects with ``instruction`` (and ``output`` in a reference).

``alpaca_eval`` is AlpacaEval's own set on the hub (tatsu-lab/alpaca_eval, 805 instructions). ``demo`` is a small set
that ships with this package. Other names are paths of files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.digests import digest_bytes, digest_file
from halos_eval.errors import BadInput, DataUnavailable
from halos_eval.hub import hub_errors
from halos_eval.shipped import shipped
from halos_eval.storage.manifest import Manifest
from halos_eval.untrusted import HALF, parse_json

HUB_REPO = "tatsu-lab/alpaca_eval"
# AlpacaEval 2's prompts, and the outputs of gpt4_1106_preview as its reference.
HubFile = Literal["prompts", "reference", "calibration"]
HUB_FILES: dict[HubFile, str] = {
    "prompts": "alpaca_eval.json",
    "reference": "alpaca_eval_gpt4_baseline.json",
    "calibration": "df_gamed.csv",
}


class PromptSet(BaseModel):
    """Validated prompts or reference outputs."""

    model_config = FROZEN

    name: str
    """alpaca_eval, demo, or the path of the file."""
    rows: tuple[dict[str, Any], ...]
    """One object for each prompt, in the file's order."""
    digest: str
    """SHA-256 of the file."""
    revision: str | None = None
    """Commit on the hub; None for a file."""

    def inputs(self, key: str) -> dict[str, str]:
        """Return the digest, and the revision if there is one, for a record's provenance."""
        return {key: self.digest} | ({f"{key}_revision": self.revision} if self.revision else {})


def load(name: str, kind: Literal["prompts", "reference"], manifest: Manifest | None = None) -> PromptSet:
    """Read a set of prompts or reference outputs. Raises BadInput, DataUnavailable."""
    path, revision = locate(name, kind, manifest)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{kind} {name}: {error.strerror}. Give alpaca_eval, demo or the path of a JSON file") from error
    rows = _parse(data, name)
    _check(rows, name, ("instruction",) if kind == "prompts" else ("instruction", "output"))
    return PromptSet(name=name, rows=tuple(rows), digest=digest_bytes(data), revision=revision)


def digest(name: str, kind: HubFile, manifest: Manifest | None = None) -> str:
    """Return the SHA-256 of a set's file, from the manifest if it names the file, so that the file is not needed."""
    if manifest and name == ALPACA_EVAL:
        return manifest.find("file", HUB_FILES[kind]).digest
    if kind == "calibration":
        return digest_file(locate(name, kind)[0])
    return load(name, kind).digest


def locate(name: str, kind: HubFile, manifest: Manifest | None = None) -> tuple[Path, str | None]:
    """Return the file of a set, downloaded if needed, and its revision on the hub. Raises DataUnavailable."""
    if name == ALPACA_EVAL:
        return hub_file(HUB_FILES[kind], manifest.find("file", HUB_FILES[kind]).revision if manifest else None)
    if name == "demo":
        return shipped("prompt_sets") / "demo.json", None
    return Path(name), None


def hub_file(filename: str, revision: str | None = None) -> tuple[Path, str]:
    """Return a file of AlpacaEval's dataset, from the hub or its cache, and the commit. Raises DataUnavailable."""
    from huggingface_hub import hf_hub_download

    unavailable: tuple[type[Exception], ...] = (*hub_errors(), OSError)
    try:
        path = Path(hf_hub_download(HUB_REPO, filename, repo_type="dataset", revision=revision))
    except unavailable as error:
        raise DataUnavailable(
            f"{HUB_REPO}/{filename} is unavailable ({type(error).__name__}). Check HF_ENDPOINT, HF_TOKEN and the "
            "network, or use a file instead of alpaca_eval"
        ) from error
    return path, path.parent.name  # the cache's layout is .../snapshots/COMMIT/FILE


def _parse(data: bytes, name: str) -> list[dict[str, Any]]:
    try:
        rows = parse_json(data)
    except ValueError as error:
        raise BadInput(f"{name} is not valid JSON ({error}); expected a list of objects with 'instruction'") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInput(f'{name} is not a JSON list of objects; expected [{{"instruction": ...}}, ...]')
    if not rows:
        raise BadInput(f"{name} is empty; expected at least one object with 'instruction'")
    return rows


def _check(rows: list[dict[str, Any]], name: str, fields: tuple[str, ...]) -> None:
    for number, row in enumerate(rows):
        for field in fields:
            text = row.get(field)
            if not isinstance(text, str) or (field == "instruction" and not text.strip()):
                raise BadInput(f"{name}: item {number} has no {field!r}; expected a text")
            check_whole(text, f"{name}: {field} of item {number}")
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        first = seen.setdefault(row["instruction"], number)
        if first != number:
            raise BadInput(f"{name}: items {first} and {number} have the same instruction. Remove one of them")


def check_whole(text: str, what: str) -> None:
    """Raise BadInput if a text has half a character, which JSON may contain and UTF-8 cannot encode."""
    if lone := HALF.search(text):
        raise BadInput(f"{what} has half a character (\\u{ord(lone[0]):04x}), which cannot be sent. Replace it")
