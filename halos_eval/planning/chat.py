"""The settings of a stage on one checkpoint: the suite's, with what the checkpoint's metadata say of its prompts.

The checkpoint says how it is asked: its stop strings, system text, arguments of its template, and the tags of its
thinking. The suite says how answers are generated, so that the scores of its checkpoints can be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.checkpoints.safetensors import read_json
from halos_eval.config.chat import ChatSettings
from halos_eval.config.suite import HarnessSettings, SamplingSettings, TaskSettings
from halos_eval.errors import BadInput
from halos_eval.stages.chat_template import read_template
from halos_eval.stages.thinking import template_arguments

OF_CHECKPOINTS = ("stop", *ChatSettings.model_fields)
"""Settings that may differ between the checkpoints of one suite."""
TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"


class NoChatTemplate(BadInput):
    """A part needs a chat template, and the checkpoint has none. Its other parts can run."""


def sampling_of(settings: SamplingSettings, metadata: Metadata) -> SamplingSettings:
    """Return the settings of the sample stage on a checkpoint with these metadata."""
    stop = (*settings.stop, *metadata.stop)
    return settings.model_copy(update={"stop": stop, **_chat(settings, metadata)})


def harness_of(settings: TaskSettings, metadata: Metadata) -> HarnessSettings:
    """Return the settings of a task on a checkpoint with these metadata, which count with the chat template only.

    Tags of the thinking count with vllm only. With transformers its answers are counted as undeclared thinking.
    """
    own = settings.harness()
    if not own.apply_chat_template:
        return own
    found = _chat(own, metadata)
    if own.backend != "vllm":
        found = {name: value for name, value in found.items() if not name.startswith("think_")}
    return own.model_copy(update=found)


def check_template(settings: ChatSettings, checkpoint: Checkpoint, folder: Path) -> None:
    """Raise BadInput if the checkpoint's chat template does not know what ``settings`` want.

    Raise NoChatTemplate if the tokenizer in the checkpoint's folder has none, and the metadata name no other.
    The template of a hub repository, and of an adapter without one, is checked when the model is loaded.

    :param folder: where the checkpoint is on this machine; it need not exist.
    """
    named = checkpoint.metadata.chat_template
    if named is None and _lacks_template(folder):
        raise NoChatTemplate(
            f"{checkpoint.name} has no chat template; it may be a base model. Set chat_template in its halos_eval.yaml "
            "to chatml or a Jinja file beside the weights; a task can also run without apply_chat_template"
        )
    if not settings.chat_template_args and settings.declared in {None, "default"}:
        return
    template = read_template(named) or _own_template(folder)
    if template:
        template_arguments(settings, template, checkpoint.name)


def _lacks_template(folder: Path) -> bool:
    """Return whether the tokenizer in ``folder`` certainly has no chat template.

    transformers 5 looks in these places. It reads chat_template.json for processors of images only. A folder without
    tokenizer_config.json has no tokenizer of this form: an adapter with that of its base, for example.
    """
    if not (folder / TOKENIZER_CONFIG).is_file():
        return False
    if (folder / TEMPLATE).is_file() or (folder / "additional_chat_templates").is_dir():
        return False
    return not _configured_template(folder)


def _own_template(folder: Path) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    return _configured_template(folder) if (folder / TOKENIZER_CONFIG).is_file() else None


def _configured_template(folder: Path) -> str | None:
    found = read_json(str(folder / TOKENIZER_CONFIG)).get("chat_template")
    if isinstance(found, list):  # several templates by name
        named = (one for one in found if isinstance(one, dict) and one.get("name") == "default")
        found = next((one.get("template") for one in named), None)
    elif isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None


def scored_metadata(metadata: Metadata) -> list[Any]:
    """Return the metadata that determine scores, except the chat template, for a digest.

    Those that are newer than digests in stores count only if they are set.
    """
    return [metadata.stop, *([metadata.chat] if metadata.chat else [])]


def _chat(settings: ChatSettings, metadata: Metadata) -> dict[str, Any]:
    own = metadata.chat
    if "chat_template_args" in own:
        own["chat_template_args"] = {**settings.chat_template_args, **own["chat_template_args"]}
    return own
