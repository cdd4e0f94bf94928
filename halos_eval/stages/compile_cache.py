"""Where vLLM, Triton and PyTorch keep what they compile, so that the next process need not compile it again.

They load what they find there as code. So a folder belongs to one set of versions and hardware, and only this project's
own processes may write to it (see `halos_eval.orchestration.pod_spec`).
"""

from __future__ import annotations

import ast
import logging
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from halos_eval.config.settings import Settings
from halos_eval.digests import digest_json
from halos_eval.stages import provenance

log = logging.getLogger(__name__)

FOLDERS = {"VLLM_CACHE_ROOT": "vllm", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Folder of each cache, by the variable that names it."""
VERSIONED = ("vllm", "torch", "triton", "transformers")
INDEX = "vllm_compile_cache.py"
"""vLLM 0.32's index of compiled graphs: a Python literal that it writes in place."""


def use_compile_cache() -> None:
    """Let the libraries that are imported after this use the cache of HALOS_EVAL_COMPILE_CACHE.

    Without that setting, variables that are set already stay, such as those of an image.
    """
    root = Settings().compile_cache
    if root is None and "VLLM_CACHE_ROOT" in os.environ:
        return
    folder = Path(root or Path.home() / ".cache" / "halos-eval" / "compile") / key()
    for variable, name in FOLDERS.items():
        os.environ[variable] = str(folder / name)
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("compiled code is not kept: %s", error)
            return
    remove_incomplete(folder / FOLDERS["VLLM_CACHE_ROOT"])


def key() -> str:
    """Return the folder's name: vLLM's version, and a digest of all versions and the hardware that code depends on."""
    facts = provenance.hardware()
    hardware = {name: facts.get(name) for name in ("machine", "processor", "gpus")}
    versions = {name: _version(name) for name in VERSIONED}
    found = {"versions": versions, "hardware": hardware, "python": platform.python_version()}
    return f"vllm-{versions['vllm']}-{digest_json(found)[:16]}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def remove_incomplete(folder: Path) -> None:
    """Remove indexes that a killed process has written in part: vLLM would fail at each start that reads one."""
    for path in folder.rglob(INDEX):
        try:
            ast.literal_eval(path.read_text())
        except (OSError, ValueError, SyntaxError):
            log.warning("compiles again: %s is incomplete", path)
            path.unlink(missing_ok=True)
