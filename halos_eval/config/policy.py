"""What is evaluated without anybody asking: which suites a newly registered checkpoint gets, and what it may cost.

One YAML file, named by HALOS_EVAL_POLICY, so that a change of it is reviewed as code is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from pydantic import BaseModel, Field

from halos_eval.config.settings import FROZEN, Settings
from halos_eval.config.yaml_file import read_settings_file


class Limit(BaseModel):
    """The most that something may cost, by what earlier runs have cost."""

    model_config = FROZEN

    gpu_hours: float | None = Field(None, ge=0)
    """Hours times GPUs; None: no limit."""
    judge_dollars: float | None = Field(None, ge=0)
    """US dollars for the judge; None: no limit."""


class Limits(BaseModel):
    """Limits of what has not started yet."""

    model_config = FROZEN

    run: Limit = Limit()
    """For one checkpoint and one suite, whoever asks for it."""
    night: Limit = Limit()
    """For all that one night starts."""


class Rule(BaseModel):
    """Checkpoints, and what they get."""

    model_config = FROZEN

    match: str = "*"
    """Pattern of names: * stands for anything."""
    tags: dict[str, str] = {}
    """Patterns of tags, all of which the checkpoint has to have."""
    suites: tuple[str, ...]
    """Names of suites; none: it is not evaluated by itself."""

    def matches(self, name: str, tags: Mapping[str, str]) -> bool:
        """Whether the rule applies to a checkpoint."""
        return matches(name, tags, (self.match,), self.tags)


class EvaluationPolicy(BaseModel):
    """The file."""

    model_config = FROZEN

    look_back_days: float = Field(7, ge=0)
    """A night also takes what was registered so long before it and has not been evaluated: what came late."""
    message_after_hours: float = Field(10, gt=0)
    """A night's message is sent when all that it has started has ended, or after so many hours."""
    limits: Limits = Limits()
    """What may be spent."""
    rules: tuple[Rule, ...]
    """The first matching rule applies."""

    def suites_for(self, name: str, tags: Mapping[str, str]) -> tuple[str, ...]:
        """Return the suites of the checkpoint ``name`` with ``tags``."""
        return next((rule.suites for rule in self.rules if rule.matches(name, tags)), ())


def matches_name(name: str, patterns: Iterable[str]) -> bool:
    """Whether ``name`` matches one of ``patterns``."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def matches(name: str, tags: Mapping[str, str], patterns: Iterable[str], tag_patterns: Mapping[str, str]) -> bool:
    """Whether the name matches one of ``patterns``, and the tags match all ``tag_patterns``."""
    return matches_name(name, patterns) and all(
        key in tags and fnmatchcase(tags[key], pattern) for key, pattern in tag_patterns.items()
    )


def load_policy() -> EvaluationPolicy:
    """The policy of HALOS_EVAL_POLICY. Raises BadInput with everything that is wrong in the file at once."""
    return read_settings_file("policy", Settings().policy, EvaluationPolicy)
