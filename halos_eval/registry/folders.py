"""The registry of HALOs' own convention: ROOT/EXPERIMENT/FINAL, with optional metadata beside the weights."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from halos_eval.checkpoint import NAME, check_name, short_name
from halos_eval.errors import BadInput, describe
from halos_eval.settings import FROZEN

METADATA = "halos_eval.yaml"


class Metadata(BaseModel):
    """The optional file halos_eval.yaml beside the weights."""

    model_config = FROZEN

    chat_template: str | None = None
    """chatml, or a Jinja file beside the weights (default: the checkpoint's own template)."""
    stop: tuple[str, ...] = ()
    """Further stop strings for sampling."""
    profile: str | None = None
    """GPU profile, from the cluster's file (default: the suite's)."""
    tags: dict[str, str] = {}
    """What people want to select and compare by: base model, method, ..."""


class Checkpoint(BaseModel):
    """A registered checkpoint."""

    model_config = FROZEN

    name: str
    """Name in the registry and in tables."""
    location: str
    """Folder or hub repository."""
    metadata: Metadata = Metadata()
    """From halos_eval.yaml."""


class FolderRegistry:
    """Checkpoints below one folder."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def names(self) -> list[str]:
        """All checkpoints: experiments with a FINAL folder, and folders that hold weights themselves."""
        marks = ("FINAL", "config.json", "adapter_config.json")
        folders = sorted(self.root.iterdir()) if self.root.is_dir() else []
        named = [folder for folder in folders if NAME.fullmatch(folder.name)]
        return [folder.name for folder in named if any((folder / mark).exists() for mark in marks)]

    def get(self, name: str) -> Checkpoint:
        """The checkpoint called ``name``: EXPERIMENT, meaning EXPERIMENT/FINAL, or a path below the root.

        A link that the lab has put below the root may lead to another disk. Raises BadInput for a name that could
        leave the root and for one that is not there.
        """
        folder = self.root / check_name(name)
        if (folder / "FINAL").is_dir():
            folder = folder / "FINAL"
        if not folder.is_dir():
            some = ", ".join(self.names()[:10]) or "none"
            raise BadInput(f"there is no checkpoint {name!r} below {self.root}: there are {some}")
        return Checkpoint(name=name.removesuffix("/FINAL"), location=str(folder), metadata=read_metadata(folder))


def from_location(location: str) -> Checkpoint:
    """A checkpoint given by its folder or hub repository, as the command line takes it."""
    folder = Path(location)
    metadata = read_metadata(folder) if folder.is_dir() else Metadata()
    return Checkpoint(name=check_name(short_name(location)), location=location, metadata=metadata)


def read_metadata(folder: Path) -> Metadata:
    """The metadata beside the weights, or an empty one. Raises BadInput."""
    path = folder / METADATA
    if not path.is_file():
        return Metadata()
    try:
        metadata = Metadata.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        raise BadInput(f"{path}: {describe(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not YAML: {error}") from error
    if metadata.chat_template and ("/" in metadata.chat_template or metadata.chat_template.endswith(".jinja")):
        template = (folder / metadata.chat_template).resolve()
        if not template.is_relative_to(folder.resolve()):
            raise BadInput(f"{path}: chat_template {metadata.chat_template} is outside the checkpoint's folder")
        return metadata.model_copy(update={"chat_template": str(template)})
    return metadata
