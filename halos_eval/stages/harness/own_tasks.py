"""The lab's own task files: digests of their folder, and of the files outside it that they name or include."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from halos_eval.digests import digest_file, digest_files, digest_json
from halos_eval.errors import BadInput

OF_LM_EVAL = re.compile(r"/(site|dist)-packages/lm_eval/")
"""Path of a file of lm_eval itself. Its version pins it, and a plan is made where lm_eval may not be installed."""


class _Function(NamedTuple):
    """A function of a Python file beside the task file."""

    name: str
    """MODULE.NAME, as in ``!function MODULE.NAME``."""


class _Loader(yaml.SafeLoader):
    """Reads task files; values with another tag than ``!function`` become None."""

    def function(self, node: yaml.ScalarNode) -> _Function:
        """Return the value with the tag ``!function``."""
        return _Function(str(self.construct_scalar(node)))


_Loader.add_constructor("!function", _Loader.function)
_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def digest_folder(folder: Path) -> str:
    """Return the digest of all files in ``folder``. Raise BadInput if it is not a folder."""
    if not folder.is_dir():
        raise BadInput(f"--include-path {folder} is not a folder")
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return digest_files(folder, [str(path) for path in files if path.suffix != ".pyc"])


def digest_outside(folder: Path) -> str | None:
    """Return the digest of the local files outside ``folder`` that its task files need; None if there are none.

    Raise BadInput for data with a relative path, because it would depend on the working directory of the process, for
    a path that does not exist, and for includes that lm_eval rejects. Data that a task's Python reads by itself cannot
    be seen here.
    """
    found = {str(path): digest_folder(path) if path.is_dir() else digest_file(path) for path in outside(folder)}
    return digest_json(found) if found else None


def outside(folder: Path) -> list[Path]:
    """Return the local files outside ``folder`` that its task files need: includes, their Python files, and data.

    Raise BadInput as ``digest_outside``.
    """
    found: set[Path] = set()
    within = {path.resolve() for path in folder.rglob("*") if path.is_file()}
    for task_file in sorted(path for path in folder.rglob("*") if path.suffix in {".yaml", ".yml"}):
        files: dict[Path, Path] = {}
        for key, (file, value) in _merged(task_file, files).items():
            files |= {module.resolve(): module for module in _modules(value, file)}
            for name in sorted(set(_local_data({key: value}))):
                found |= {path for path in _existing(name, file) if not path.resolve().is_relative_to(folder.resolve())}
        found |= {path for real, path in files.items() if real not in within}
    return sorted(found)


def _merged(file: Path, files: dict[Path, Path]) -> dict[Any, tuple[Path, Any]]:
    """Return the keys of a task file and of those that it includes: for each, the file that has it, and its value.

    As ``load_yaml`` of lm_eval 0.4.13, which looks for includes beside the file itself, not beside a link to it, and
    rejects a second include of the same file. ``files`` gets all of them, by their real paths.
    """
    real = file.resolve()
    files[real] = file
    document = _read(file)
    if not isinstance(document, dict):
        return {"": (file, document)}
    merged: dict[Any, tuple[Path, Any]] = {}
    for name in _includes(document, file):
        path = Path(os.path.normpath(real.parent / name))
        if OF_LM_EVAL.search(str(path)):
            continue
        if not path.is_file():
            raise BadInput(
                f"{file}: include {name} does not exist; expected the file {path}. Mount it, or fix the path"
            )
        if path.resolve() in files:
            raise BadInput(
                f"{file}: include {name} is included already; expected each file once, because lm_eval rejects loops "
                "and repetitions. Remove one of the includes"
            )
        merged |= _merged(path, files)
    return merged | {key: (file, value) for key, value in document.items()}


def _includes(document: dict[Any, Any], file: Path) -> list[str]:
    names = document.get("include", [])
    names = names if isinstance(names, list) else [names]
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise BadInput(f"{file}: include is no path ({wrong[0]}); expected one, or a list. Fix or remove it")
    return names


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


def _modules(value: Any, file: Path) -> Iterator[Path]:
    """Yield the Python files beside ``file`` of which a value has functions. Others are installed."""
    for leaf in _leaves(value):
        if isinstance(leaf, _Function):
            module = leaf.name.rpartition(".")[0].replace(".", "/")
            path = file.resolve().parent / f"{module}.py"
            if path.is_file():
                yield path


def _texts(value: Any) -> Iterator[str]:
    return (leaf for leaf in _leaves(value) if isinstance(leaf, str))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value
