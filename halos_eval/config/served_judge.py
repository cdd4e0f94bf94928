"""A judge of a suite: a name, a file, or a model that is served with vLLM while it judges."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput, describe

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
"""Data type of a model's weights for vLLM."""
CLASSIFICATION_PROMPT = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"


class ServedJudge(BaseModel):
    """A model that judges on GPUs of this installation, without an API key.

    Its only possible answers are m and M, so a template must ask for one of these.
    """

    model_config = FROZEN

    model: str = Field(min_length=1)
    """Folder with full weights, or NAMESPACE/NAME on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    profile: str | None = None
    """GPU profile from the cluster file (default: the suite's)."""
    prompt_template: str = CLASSIFICATION_PROMPT
    """Template of the prompt: a file beside the suite's, or one that alpaca_eval ships."""
    dtype: Dtype = "auto"
    """Data type of the weights; auto takes the model's own."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest prompt in tokens (default: the model's own limit)."""

    def __str__(self) -> str:
        """Return the JSON that ``judge_choice`` reads, for command lines, plans and messages."""
        return self.model_dump_json(exclude_defaults=True)

    @property
    def label(self) -> str:
        """Name of the model for people: the last part of its path that is not FINAL."""
        return next((part for part in reversed(self.model.split("/")) if part not in {"", "FINAL"}), self.model)

    def beside(self, folder: Path) -> ServedJudge:
        """Return the judge with absolute paths of what is in ``folder``."""
        names = {"model": self.model, "prompt_template": self.prompt_template}
        return self.model_copy(
            update={key: str((folder / name).absolute()) for key, name in names.items() if (folder / name).exists()}
        )


JudgeChoice = str | ServedJudge
"""One judge of a suite: the name of a judge, its YAML file, or a model to serve."""


def judge_choice(text: str) -> JudgeChoice:
    """Return the judge that a command line names. Raise BadInput for the JSON of no ServedJudge."""
    if not text.startswith("{"):
        return text
    try:
        return ServedJudge.model_validate_json(text)
    except ValidationError as error:
        raise BadInput(
            f"judge {text}: {describe(error)}. Give {{model: ..., profile: ...}}, a name or a file"
        ) from error
