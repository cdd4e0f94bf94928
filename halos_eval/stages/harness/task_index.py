"""lm_eval's index of tasks, reduced to the requested ones.

``TaskManager()`` of lm_eval 0.4.13 parses 14,000 YAML files, and each include as often as it is included. That takes
20 s of CPU in every process, during which a pod's GPU is idle. This module reads all files as bytes in less than a
second. It parses only those that mention a wanted name, directly or through an include. The tasks are the same.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry

log = logging.getLogger(__name__)

# A name on the line of the key, as nearly all files have it.
SIMPLE_INCLUDE = re.compile(rb"""^"?include"?: +["']?([\w./-]+)["']?[ \t]*\r?$""", re.MULTILINE)
IGNORED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}  # as in lm_eval


def task_manager(names: Iterable[str], include_paths: Iterable[Path]) -> TaskManager:
    """Return lm_eval's manager with the tasks, groups and tags in ``names``, and their members.

    A task below a later one of ``include_paths`` overrides one of the same name, as in lm_eval itself.
    """
    from lm_eval import tasks

    manager = tasks.TaskManager(include_defaults=False)
    folders = [_Folder(folder) for folder in (Path(tasks.__file__).parent, *include_paths)]
    wanted: set[str] = set()
    new = set(names)
    while new:
        wanted |= new
        manager.task_index.clear()
        for folder in folders:
            folder.want(new)
            manager.task_index.update(folder.entries())
        new = {member for name in wanted for member in _members(manager.task_index.get(name))} - wanted
    return manager


def _members(entry: Entry | None) -> Iterator[str]:
    """Yield the names that a group or a tag refers to."""
    if entry is None:
        return
    if entry.yaml_path is None:
        yield from entry.tags
    elif entry.cfg and "group" in entry.cfg:
        yield from _listed(entry.cfg.get("task"))


def _listed(members: Any) -> Iterator[str]:
    for member in members if isinstance(members, list) else ():
        if isinstance(member, str):
            yield member
        elif isinstance(member, dict):
            yield from (value for key in ("group", "task") if isinstance(value := member.get(key), str))
            yield from _listed(member.get("task"))


class _Folder:
    """The YAML files below a folder, as bytes, and the subset that mentions a wanted name."""

    def __init__(self, folder: Path) -> None:
        self._texts: dict[str, bytes] = {}
        for path in sorted(_yaml_files(folder)):
            self._read(path)
        self._files = set(self._texts)
        self._includers: dict[str, set[str]] = defaultdict(set)
        for path in list(self._texts):
            self._follow_includes(path)
        self._mentioning: set[str] = set()

    def _read(self, path: str) -> bool:
        """Keep the content of a file; return False for one that cannot be read, which lm_eval skips, too."""
        try:
            self._texts[path] = Path(path).read_bytes()
        except OSError as error:
            log.debug("skipped %s (%s)", path, error)
            return False
        return True

    def _follow_includes(self, path: str) -> None:
        """Note who includes what; the files included often do not end in .yaml."""
        # lm_eval looks beside the file itself, not beside a link to it.
        parent = (os.path.realpath(path) if Path(path).is_symlink() else path).rpartition("/")[0]
        for name in _included(self._texts[path]):
            target = os.path.normpath(name if name.startswith("/") else f"{parent}/{name}")
            self._includers[target].add(path)
            if target not in self._texts and self._read(target):
                self._follow_includes(target)

    def want(self, names: Iterable[str]) -> None:
        """Add the files that mention one of ``names`` as a word, or include one that does."""
        for name in names:
            text = name.encode()
            word = re.compile(rb"(?<![\w.-])" + re.escape(text) + rb"(?![\w.-])")
            found = [path for path, content in self._texts.items() if text in content and word.search(content)]
            while found:
                path = found.pop()
                if path not in self._mentioning:
                    self._mentioning.add(path)
                    found += self._includers[path]

    def entries(self) -> dict[str, Entry]:
        """Return lm_eval's entries for these files; of two with the same name, the first."""
        from lm_eval.tasks._index import TaskIndex
        from lm_eval.tasks._yaml_loader import load_yaml

        entries: dict[str, Entry] = {}
        for path in sorted(self._mentioning & self._files):
            try:
                TaskIndex.process_cfg(load_yaml(path, resolve_func=False), Path(path), entries)
            except Exception as error:  # noqa: BLE001 (lm_eval also skips a file on any error)
                log.debug("skipped %s (%s)", path, error)
        return entries


def _yaml_files(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in IGNORED_FOLDERS]
        yield from (f"{parent}/{name}" for name in files if name.endswith(".yaml"))


def _included(content: bytes) -> list[str]:
    """Return the files that a file includes. It is parsed only where that cannot be seen at once."""
    if b"include" not in content:
        return []
    if len(found := SIMPLE_INCLUDE.findall(content)) == 1:
        return [found[0].decode()]
    try:
        names = yaml.load(content, Loader=_AnyTag).get("include", [])  # noqa: S506 (a safe loader)
    except Exception as error:  # noqa: BLE001 (lm_eval skips such a file, too)
        log.debug("no includes: %s", error)
        return []
    return [name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str)]


class _AnyTag(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML without what its tags stand for: lm_eval's files name functions with ``!function``."""


_AnyTag.add_multi_constructor("!", lambda loader, suffix, node: None)
