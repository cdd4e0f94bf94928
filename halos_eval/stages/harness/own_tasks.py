"""The lab's own task files: digests of their folder and of the data files that they name outside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from halos_eval.digests import digest_file, digest_files, digest_json
from halos_eval.errors import BadInput


class _Loader(yaml.SafeLoader):
    """Reads task files; values with a tag of lm_eval (!function) become None."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def digest_folder(folder: Path) -> str:
    """Return the digest of all files in ``folder``. Raise BadInput if it is not a folder."""
    if not folder.is_dir():
        raise BadInput(f"--include-path {folder} is not a folder")
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return digest_files(folder, [str(path) for path in files if path.suffix != ".pyc"])


def digest_outside(folder: Path) -> str | None:
    """Return the digest of the local data outside ``folder`` that its task files name; None if there is none.

    Raise BadInput for a relative path, because it would depend on the working directory of the process, and for a path
    that does not exist. Data that a task's Python reads by itself cannot be seen here.
    """
    found = {str(path): digest_folder(path) if path.is_dir() else digest_file(path) for path in outside(folder)}
    return digest_json(found) if found else None


def outside(folder: Path) -> list[Path]:
    """Return the local data outside ``folder`` that its task files name. Raise BadInput as ``digest_outside``."""
    found: set[Path] = set()
    for task_file in sorted(path for path in folder.rglob("*") if path.suffix in {".yaml", ".yml"}):
        for name in sorted(set(_local_data(_read(task_file)))):
            found |= {
                path for path in _existing(name, task_file) if not path.resolve().is_relative_to(folder.resolve())
            }
    return sorted(found)


def _read(file: Path) -> Any:
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is not valid YAML ({error}); expected a task of lm_eval. Fix or remove it") from error


def _existing(name: str, task_file: Path) -> list[Path]:
    """Return the paths that ``name``, a path or a pattern, stands for. Raise BadInput."""
    if not Path(name).is_absolute():
        raise BadInput(
            f"{task_file}: data {name} is relative to the working directory, which is another one in a pod; expected "
            f"an absolute path. Write {(task_file.parent / name).resolve()}"
        )
    found = sorted(Path("/").glob(name.removeprefix("/")))
    if not found:
        raise BadInput(f"{task_file}: data {name} does not exist. Mount it, or fix the path")
    return found


def _local_data(document: Any) -> Iterator[str]:
    """Yield the local paths of data that a task file names; URLs and repositories of the hub are pinned elsewhere."""
    if isinstance(document, list):
        for item in document:
            yield from _local_data(item)
    if not isinstance(document, dict):
        return
    for key, value in document.items():
        if key == "data_files":
            yield from (text for text in _texts(value) if "://" not in text)
        elif key in {"dataset_path", "data_dir"}:
            yield from (text for text in _texts(value) if text.startswith(("/", ".", "~")))
        else:
            yield from _local_data(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
