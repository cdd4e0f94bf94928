"""NLTK's data in the cache. ifeval needs the sentence tokenizer, which it downloads when it is imported."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from halos_eval.errors import DataUnavailable
from halos_eval.hub import cache_root


def folder() -> Path:
    """Return the folder of NLTK's data in the cache."""
    return cache_root() / "nltk_data"


def fetch(download: Callable[..., bool], package: str) -> Path:
    """Return the archive of ``package``, with its content unpacked beside it. Raises DataUnavailable.

    NLTK does not write atomically. So both are written elsewhere and moved, the archive last: if it exists, the package
    is complete.
    """
    from filelock import FileLock

    folder().mkdir(parents=True, exist_ok=True)
    with FileLock(folder() / f"{package}.lock"), tempfile.TemporaryDirectory(dir=folder()) as scratch:
        if not (found := _archive(folder(), package)):
            try:
                download(package, download_dir=scratch, quiet=True, raise_on_error=True)
                made = _archive(Path(scratch), package)
            except (OSError, ValueError) as error:
                raise DataUnavailable(
                    f"NLTK's package {package} is unavailable ({error}). Check the network, or copy {package}.zip and "
                    f"its unpacked content to NLTK's path below {folder()}"
                ) from error
            if made is None:
                raise DataUnavailable(f"NLTK has no package {package}. Check its name in the task")
            found = _keep(made)
    return found


def _archive(root: Path, package: str) -> Path | None:
    return next(root.glob(f"*/{package}.zip"), None)


def _keep(archive: Path) -> Path:
    kind = folder() / archive.parent.name
    kind.mkdir(exist_ok=True)
    unpacked = archive.with_suffix("")
    if unpacked.is_dir():
        shutil.rmtree(kind / unpacked.name, ignore_errors=True)
        unpacked.rename(kind / unpacked.name)
    return archive.rename(kind / archive.name)
