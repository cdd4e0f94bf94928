"""Links in a checkpoint's folder: whoever can write a checkpoint must not decide which other files of a pod are read.

A link may lead into the folder itself, into the registry's root, and from a snapshot of the Hugging Face cache to the
blobs of its repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from halos_eval.checkpoints.files import COUNTED
from halos_eval.errors import BadInput

TEMPLATES = "additional_chat_templates"
"""Folder of a checkpoint in which transformers looks for more chat templates."""


def check_links(folder: str, root: str | None = None) -> None:
    """Raise BadInput if ``folder`` or a file in it leads to somewhere else. Object storage has no links.

    :param root: the registry's folder, into which links may lead, and which ``folder`` must not leave if it is in it.
    """
    if "://" in folder:
        return
    real = Path(os.path.realpath(folder))
    areas = [real]
    if root and Path(folder).is_relative_to(root):
        area = Path(os.path.realpath(root))
        if not real.is_relative_to(area):
            raise BadInput(
                f"{folder} is a link to {real}, outside {root}; expected a folder below it. Copy the checkpoint there, "
                "or name that folder in a list of checkpoints (NAME.yaml)"
            )
        areas.append(area)
    if (snapshots := real.parent).name == "snapshots" and "--" in snapshots.parent.name:
        areas.append(snapshots.parent)
    for link in _links(folder):
        target = Path(os.path.realpath(link))
        if not any(target.is_relative_to(area) for area in areas):
            inside = f" or {root}" if len(areas) > 1 and root else ""
            raise BadInput(
                f"{link} is a link to {target}; expected a file in {folder}{inside}. Replace the link by a copy of the "
                "file (cp -L)"
            )


def _links(folder: str) -> Iterator[str]:
    """Yield the links among the files that are read. Links that lead nowhere count as missing files elsewhere."""
    for parent in (Path(folder), Path(folder, TEMPLATES)):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(parent) as scanned:
            for child in scanned:
                if child.is_symlink() and (child.name == TEMPLATES or COUNTED.fullmatch(child.name)):
                    yield child.path
