"""The versions of the evaluation tools, which are part of every fingerprint.

They are pinned once, in the extras of pyproject.toml; the images' locks are resolved from these extras. The planner
runs without vLLM installed, so it reads the pins from the metadata of this package.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from halos_eval.errors import EvaluationFailed

PACKAGES = ("vllm", "lm-eval", "alpaca-eval")
"""The tools whose versions determine scores."""


@cache
def pinned(package: str) -> str:
    """Return the version that this project pins for ``package``."""
    for line in requires("halos-eval") or []:
        requirement = Requirement(line)
        if requirement.name == package:
            return next(iter(requirement.specifier)).version
    raise LookupError(f"{package} is not among the pinned extras in pyproject.toml")


def versions() -> dict[str, str]:
    """Return the pinned version of every tool."""
    return {package: pinned(package) for package in PACKAGES}


def check_installed(*packages: str) -> None:
    """Raise EvaluationFailed unless each of ``packages`` is installed in its pinned version.

    A build tag (``0.32.0+cpu``) is ignored: it names the hardware, which is in the record.
    """
    for package in packages:
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "none"
        if found == "none" or Version(found).public != Version(pinned(package)).public:
            raise EvaluationFailed(
                f"wrong version of {package} installed ({found}); expected {pinned(package)}, as in the fingerprint. "
                "Rebuild the image or the virtual environment from its lock"
            )
