"""The one module that reads the environment for this project's own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict
from pydantic_settings import BaseSettings, SettingsConfigDict

HERE = Path(__file__).parent


def _absolute(place: str) -> str:
    """A path without its relation to this folder: a stage's process has another one. URLs stay as they are."""
    scheme, separator, path = place.rpartition("://")
    return place if scheme not in {"", "file"} else f"{scheme}{separator}{Path(path).absolute()}"


Place = Annotated[str, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """Settings of one installation, from variables ``HALOS_EVAL_*``."""

    model_config = SettingsConfigDict(env_prefix="HALOS_EVAL_", frozen=True, use_attribute_docstrings=True)

    store: Place = f"file://{Path.cwd() / 'var' / 'store'}"
    """fsspec URL of the folder that holds runs and reports (file://, s3://)."""
    checkpoints: Place = str(Path.cwd() / "var" / "checkpoints")
    """Where checkpoints come from: a folder or s3:// URL with EXPERIMENT/FINAL, a list NAME.yaml, mlflow+http://..."""
    steps: bool = False
    """Whether an experiment's other folders with weights count as checkpoints as well, as EXPERIMENT/STEP."""
    suites: Place | None = None
    """Folder with suites of your own (NAME.yaml), looked through before the ones that ship."""
    cluster: Place = str(HERE / "clusters" / "local.yaml")
    """File that says where stages run: on Kubernetes, or on this machine (the one that ships)."""
    policy: Place = str(HERE / "policies" / "default.yaml")
    """File that says which suites a newly registered checkpoint gets, and what may be spent."""
    night: str = "0 20 * * *"
    """When the night begins, as cron writes it: what was registered since the last one is evaluated then."""
    timezone: str = "UTC"
    """The time zone of ``night``, such as Europe/Berlin."""
    environments: Place = str(Path.cwd() / ".venv")
    """Folder with one virtual environment for each image: worker, judge. Used where there is no cluster."""
    commit: str | None = None
    """Commit of this package, stamped into the images; taken from git where it is unset and there is a checkout."""


# pydantic's own ConfigDict, so that every model of the project refuses unknown keys and cannot be changed.
FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def shipped(kind: str) -> Path:
    """The folder of this package that holds ``kind`` (suites, annotators, templates, tasks, prompts)."""
    return HERE / kind
