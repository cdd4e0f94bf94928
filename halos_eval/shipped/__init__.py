"""Files that ship with the package: suites, judges, clusters, policies, prompt sets, tasks, templates."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def shipped(kind: str) -> Path:
    """Return the folder that holds ``kind``."""
    return HERE / kind
