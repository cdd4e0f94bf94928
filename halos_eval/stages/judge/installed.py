"""What the installed alpaca_eval ships, and whether it is what the index says.

`make index` writes the index with this module, in the environment of the judge.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from halos_eval.config.alpaca_index import Index, Template, index, without_descriptions
from halos_eval.config.judge import Judge
from halos_eval.digests import digest_bytes
from halos_eval.errors import EvaluationFailed
from halos_eval.stages import tools

CONFIGS = ("configs.yaml", "config.yaml")


def build_index() -> Index:
    """Return the index of the installed alpaca_eval."""
    from alpaca_eval import completion_parsers, processors
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    root = Path(EVALUATORS_CONFIG_DIR)
    templates = {str(path.relative_to(root)): Template.of(path.read_bytes()) for path in sorted(root.rglob("*.txt"))}
    return Index(
        version=tools.pinned("alpaca-eval"),
        judges={
            folder.name: without_descriptions(_entries(folder)) for folder in sorted(root.iterdir()) if folder.is_dir()
        },
        templates=templates,
        parsers={name: _parameters(getattr(completion_parsers, name)) for name in completion_parsers.__all__},
        processors={name: _parameters(getattr(processors, name)) for name in processors.__all__},
        client_options=_client_options(),
    )


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    path = next(folder / name for name in CONFIGS if (folder / name).is_file())
    entries: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return entries


def _parameters(function: Callable[..., Any]) -> dict[str, bool]:
    """Return the parameters that a configuration may give, and whether each is required."""
    return {
        name: one.default is one.empty
        for name, one in inspect.signature(function).parameters.items()
        if name != "completion" and not name.startswith("_") and one.kind not in {one.VAR_KEYWORD, one.VAR_POSITIONAL}
    }


def _client_options() -> tuple[str, ...]:
    """Return what alpaca_eval's client takes from a configuration and does not send."""
    from alpaca_eval.decoders import openai

    own = inspect.signature(openai.openai_completions).parameters
    helper = inspect.signature(openai._openai_completion_helper).parameters
    sent = {"max_tokens", "top_p", "temperature"}
    popped = {"requires_chatml"}
    return tuple(
        sorted(({*own, *helper} | popped) - sent - {"prompts", "model_name", "args", "kwargs", "decoding_kwargs"})
    )


def as_installed(judge: Judge) -> Judge:
    """Return a judge of alpaca_eval's own with the descriptions of its tools; any other judge as it is.

    Raise EvaluationFailed if the package holds another configuration than the index.
    """
    if judge.alpaca_eval_name is None:
        return judge
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    ((_, entry),) = _entries(Path(EVALUATORS_CONFIG_DIR) / judge.alpaca_eval_name).items()
    if without_descriptions(entry) != index().judges[judge.alpaca_eval_name][judge.name]:
        raise EvaluationFailed(_differs(f"judge {judge.alpaca_eval_name}"))
    sent = {key: entry["completions_kwargs"].get(key, value) for key, value in judge.completions_kwargs.items()}
    return judge.model_copy(
        update={
            "completions_kwargs": sent,
            "completion_parser_kwargs": entry.get("completion_parser_kwargs", {}),  # JSON has no numbers as keys
        }
    )


def template_path(judge: Judge) -> Path:
    """Return the file of a template that alpaca_eval ships. Raise EvaluationFailed if its content differs."""
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    path = Path(EVALUATORS_CONFIG_DIR) / judge.prompt_template
    if not path.is_file() or digest_bytes(path.read_bytes()) != index().templates[judge.prompt_template].sha256:
        raise EvaluationFailed(_differs(f"prompt template {judge.prompt_template}"))
    return path


def _differs(what: str) -> str:
    return (
        f"alpaca_eval's {what} is not that of version {index().version}, which determines the fingerprint. "
        "Rebuild the image or the virtual environment from its lock"
    )


if __name__ == "__main__":
    import sys

    document = build_index().model_dump(mode="json")
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
