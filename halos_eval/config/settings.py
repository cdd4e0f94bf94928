"""The one module that reads the environment for this project's own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from halos_eval.shipped import shipped


def _absolute(location: str) -> str:
    """Return a path as an absolute path, because stages run in another folder. Other URLs stay unchanged."""
    scheme, separator, path = location.rpartition("://")
    return location if scheme not in {"", "file"} else f"{scheme}{separator}{Path(path).absolute()}"


Location = Annotated[str, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """Settings of one installation, from the environment variables ``HALOS_EVAL_*``."""

    model_config = SettingsConfigDict(env_prefix="HALOS_EVAL_", frozen=True, use_attribute_docstrings=True)

    store: Location = f"file://{Path.cwd() / 'var' / 'store'}"
    """fsspec URL of the folder that holds runs and reports (file://, s3://)."""
    checkpoints: Location = str(Path.cwd() / "var" / "checkpoints")
    """Registry of checkpoints: a folder or s3:// URL with EXPERIMENT/FINAL, a list NAME.yaml, or mlflow+http://HOST:PORT."""
    steps: bool = False
    """Whether an experiment's other folders with weights are checkpoints too, named EXPERIMENT/STEP."""
    suites: Location | None = None
    """Folder with your own suites (NAME.yaml). They override shipped suites of the same name."""
    cluster: Location = str(shipped("clusters") / "local.yaml")
    """Cluster file: whether stages run on Kubernetes or on this machine, with pools and GPU profiles."""
    policy: Location = str(shipped("policies") / "default.yaml")
    """Policy file: which suites a newly registered checkpoint gets, and the cost limits."""
    night: str = "0 20 * * *"
    """When `nightly_evaluation` starts, as a cron expression."""
    timezone: str = "UTC"
    """Time zone of HALOS_EVAL_NIGHT, such as Europe/Berlin."""
    heartbeat_url: SecretStr | None = None
    """URL that is requested after each night's message, so that a monitoring service notices missing nights."""
    environments: Location = str(Path.cwd() / ".venv")
    """Folder with the virtual environments `worker` and `judge`. Only used without a cluster."""
    compile_cache: Location | None = None
    """Folder for what vLLM compiles (default: ~/.cache/halos-eval/compile, unless VLLM_CACHE_ROOT is set)."""
    accept_weak_sandbox: bool = False
    """Execute model-written code also where the kernel has no Landlock; it can then read and change files."""
    commit: str | None = None
    """Commit of this package, for records. The images set it; in a checkout it is read from git."""


# For every model of the project: unknown keys are rejected and fields cannot be changed.
FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
