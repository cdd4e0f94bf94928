"""The policy file, which HALOS_EVAL_POLICY names: the suites of newly registered checkpoints, and the cost limits.

It is a file so that a change can be reviewed like code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from halos_eval.config.cluster import Priority
from halos_eval.config.settings import FROZEN, Settings
from halos_eval.config.yaml_file import read_settings_file

RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE | re.ASCII)
"""Names that MLflow keeps for itself."""


class Limit(BaseModel):
    """Highest cost, estimated from earlier runs."""

    model_config = FROZEN

    gpu_hours: float | None = Field(None, ge=0)
    """Hours times GPUs; None is no limit."""
    judge_dollars: float | None = Field(None, ge=0)
    """US dollars for the judge; None is no limit."""


class Limits(BaseModel):
    """Limits on evaluations that have not started yet."""

    model_config = FROZEN

    run: Limit = Limit()
    """Limit of one checkpoint and one suite, however the run was started."""
    night: Limit = Limit()
    """Limit of all runs that one night starts."""


class Rule(BaseModel):
    """Patterns for checkpoints, and the suites of matching checkpoints."""

    model_config = FROZEN

    match: str = "*"
    """Pattern of names; * matches any characters."""
    tags: dict[str, str] = {}
    """Patterns of tags; the checkpoint must match all of them."""
    suites: tuple[str, ...]
    """Names of suites; an empty list starts no evaluation."""

    def matches(self, name: str, tags: Mapping[str, str]) -> bool:
        """Return whether the rule applies to a checkpoint."""
        return matches(name, tags, (self.match,), self.tags)


class Gate(BaseModel):
    """Patterns for checkpoints, and what a matching checkpoint is compared with after each evaluation.

    A task in which it is worse fails the run, or only warns.
    """

    model_config = FROZEN

    match: str = "*"
    """Pattern of names; * matches any characters."""
    tags: dict[str, str] = {}
    """Patterns of tags; the checkpoint must match all of them."""
    suites: tuple[str, ...] = ()
    """Only in these suites; an empty list stands for all."""
    against: Literal["parent", "best", "last", "fixed"]
    """Compare with: the checkpoint that a tag names, the best one so far, the one registered before, or a fixed one."""
    parent_tag: str = "parent"
    """With `parent`: the tag that has the name of the other checkpoint."""
    same_tags: tuple[str, ...] = ()
    """With `best` and `last`: only checkpoints with the same values of these tags."""
    checkpoint: str | None = None
    """With `fixed`: name of the checkpoint."""
    block: tuple[str, ...] = ()
    """Patterns of tasks, or alpaca_eval, that fail the run if they are worse; the others only warn."""
    mlflow_alias: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,255}$")
    """With `mlflow_results`: alias of the model in MLflow that a checkpoint gets if it is better; None is no alias."""

    @model_validator(mode="after")
    def _complete(self) -> Gate:
        if (self.against == "fixed") != (self.checkpoint is not None):
            raise ValueError("checkpoint is required with `against: fixed`, and only there")
        if self.mlflow_alias and RESERVED_ALIAS.fullmatch(self.mlflow_alias):
            raise ValueError(f"MLflow reserves the alias {self.mlflow_alias}. Choose another name")
        return self

    def applies(self, suite: str, name: str, tags: Mapping[str, str]) -> bool:
        """Return whether the gate is that of a checkpoint in a suite."""
        return (not self.suites or suite in self.suites) and matches(name, tags, (self.match,), self.tags)


class EvaluationPolicy(BaseModel):
    """The policy file."""

    model_config = FROZEN

    look_back_days: float = Field(7, ge=0)
    """A night also evaluates checkpoints of this many days before it that were not evaluated yet."""
    message_after_hours: float = Field(10, gt=0)
    """A night's message is sent when all its runs have ended, or after this many hours."""
    limits: Limits = Limits()
    """Cost limits."""
    batch: tuple[Priority, ...] = ()
    """Priorities of runs whose judge uses the vendor's Batch API, for half the price and up to a day later."""
    margin: float = Field(0.01, ge=0)
    """Differences up to this do not matter: 0.01 is one percentage point."""
    gates: tuple[Gate, ...] = ()
    """The first matching gate applies; a checkpoint that matches none is compared with nothing."""
    mlflow_results: bool = False
    """Write each result to its model version in MLflow, if that is the registry."""
    rules: tuple[Rule, ...]
    """The first matching rule applies."""

    @model_validator(mode="after")
    def _aliases_written(self) -> EvaluationPolicy:
        if not self.mlflow_results and any(gate.mlflow_alias for gate in self.gates):
            raise ValueError("mlflow_alias of a gate needs `mlflow_results: true`. Add it, or remove the alias")
        return self

    def suites_for(self, name: str, tags: Mapping[str, str]) -> tuple[str, ...]:
        """Return the suites of the checkpoint ``name`` with ``tags``."""
        return next((rule.suites for rule in self.rules if rule.matches(name, tags)), ())

    def gate_for(self, suite: str, name: str, tags: Mapping[str, str]) -> Gate | None:
        """Return the gate of the checkpoint ``name`` with ``tags`` in a suite; None if there is none."""
        return next((gate for gate in self.gates if gate.applies(suite, name, tags)), None)


def matches_name(name: str, patterns: Iterable[str]) -> bool:
    """Return whether ``name`` matches one of ``patterns``."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def matches(name: str, tags: Mapping[str, str], patterns: Iterable[str], tag_patterns: Mapping[str, str]) -> bool:
    """Return whether the name matches one of ``patterns`` and the tags match all ``tag_patterns``."""
    return matches_name(name, patterns) and all(
        key in tags and fnmatchcase(tags[key], pattern) for key, pattern in tag_patterns.items()
    )


def load_policy() -> EvaluationPolicy:
    """Return the policy file of HALOS_EVAL_POLICY. Raises BadInput with all errors of the file."""
    return read_settings_file("policy", Settings().policy, EvaluationPolicy)
