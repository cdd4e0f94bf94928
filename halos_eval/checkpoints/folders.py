"""The registry of HALOs' own convention: ROOT/EXPERIMENT/FINAL, on a disk or in object storage.

The registration time is that of the newest file of a checkpoint, or of a newer link in its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from itertools import accumulate

from halos_eval.checkpoints.metadata import WeightsFolder, look_into
from halos_eval.checkpoints.registry import (
    SHOWN,
    Checkpoint,
    Listing,
    Metadata,
    RegistryUnavailable,
    in_interval,
    listing,
    look_at_all,
    not_registered,
)
from halos_eval.checkpoints.safetensors import ADAPTER_CONFIG, files_of
from halos_eval.storage import filesystem
from halos_eval.storage.filesystem import Entry
from halos_eval.storage.layout import original_part, safe_name

FINAL = "FINAL"


class FolderRegistry:
    """Checkpoints below one folder, which is a path or a URL such as s3://BUCKET/PREFIX."""

    def __init__(self, root: str, steps: bool = False) -> None:
        """With ``steps``, the other folders of an experiment with weights are checkpoints too, as EXPERIMENT/STEP."""
        self.root = root.removeprefix("file://").rstrip("/") or "/"
        self.steps = steps

    def registered(self, start: datetime | None = None, end: datetime | None = None) -> Listing:
        """Return the checkpoints as in ``Registry``. Only the headers of weight files are read."""
        experiments = self._experiments()
        if not experiments:
            self._check_root()
        folders, skipped = look_at_all(experiments, self._folders, one_storage=True)
        urls = {name: url for found in folders.values() for name, url in found.items()}
        checkpoints, more = look_at_all(urls, lambda name: self._look(name, urls[name], start, end), one_storage=True)
        return listing(checkpoints.values(), skipped | more)

    def get(self, name: str) -> Checkpoint:
        """Return the checkpoint EXPERIMENT, which is EXPERIMENT/FINAL, or a path below the root. As in ``Registry``.

        Links may not leave the root.
        """
        original = self._original(name).removesuffix(f"/{FINAL}")
        url = filesystem.join(self.root, original)
        url = filesystem.join(url, FINAL) if _is_folder(files_of(url), FINAL) else url
        found = self._look(original, url)
        if found is None:
            some, _ = look_at_all(self._experiments()[: 3 * SHOWN], self._folders, one_storage=True)
            raise not_registered(name, self.root, [one for folders in some.values() for one in folders])
        return found

    def _original(self, name: str) -> str:
        """Return the path below the root of the checkpoint ``name``, if it exists. Raises BadInput, StoreError."""
        safe_name(name)
        path = self.root
        for part in name.split("/"):
            path = filesystem.join(path, original_part(part, partial(filesystem.entries, path)))
        return path.removeprefix(self.root.rstrip("/") + "/")

    def _experiments(self) -> list[str]:
        found = filesystem.entries(self.root)
        return sorted(name for name, entry in found.items() if entry.is_folder and not name.startswith("."))

    def _check_root(self) -> None:
        # In object storage an empty prefix does not exist, so only the bucket is checked.
        root = "/".join(self.root.split("/")[:3]) if "://" in self.root else self.root
        if not filesystem.exists(root):
            raise RegistryUnavailable(f"{root} does not exist. Mount it or change HALOS_EVAL_CHECKPOINTS")

    def _folders(self, experiment: str) -> dict[str, str]:
        """Return the folders of an experiment's checkpoints, by name."""
        url = filesystem.join(self.root, experiment)
        inside = files_of(url)
        found = {}
        if _is_folder(inside, FINAL):
            found[experiment] = filesystem.join(url, FINAL)
        elif _holds_weights(inside):
            found[experiment] = url
        if self.steps:
            steps = [name for name in inside if _is_folder(inside, name) and name != FINAL]
            found |= {f"{experiment}/{name}": filesystem.join(url, name) for name in steps}
        return found

    def _look(
        self, name: str, url: str, start: datetime | None = None, end: datetime | None = None
    ) -> Checkpoint | None:
        """Return the checkpoint in ``url``; None outside the interval, or for a step without weights."""
        folder = look_into(url)
        if not (url.endswith(f"/{FINAL}") or _holds_weights(folder.files)):
            return None
        registered = self._registered(folder)
        if registered and not in_interval(registered, start, end):
            return None
        return folder.checkpoint(name, registered, Metadata(), self.root)

    def _registered(self, folder: WeightsFolder) -> datetime | None:
        below = folder.url.removeprefix(f"{self.root}/").split("/")
        paths = list(accumulate(below, filesystem.join, initial=self.root))[1:]
        times = [folder.finished, *map(filesystem.linked, paths)]
        return max((one for one in times if one), default=None)


def _is_folder(inside: Mapping[str, Entry], name: str) -> bool:
    return name in inside and inside[name].is_folder


def _holds_weights(inside: Mapping[str, Entry]) -> bool:
    return "config.json" in inside or ADAPTER_CONFIG in inside
