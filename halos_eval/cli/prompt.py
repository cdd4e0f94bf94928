"""The command `halos-eval prompt`: what a stage sends to a model, token by token."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from halos_eval.config.chat import ChatSettings
from halos_eval.config.suite import ALPACA_EVAL, TASK_NAME, StopStrings
from halos_eval.data import prompts
from halos_eval.reports.terminal import visible
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.harness.requests import requests_of
from halos_eval.stages.prompt import Prompting, Request
from halos_eval.stages.sampled import turns_of
from halos_eval.stages.tokenizer import load_tokenizer

OF_A_TASK = (
    "apply_chat_template",
    "fewshot_as_multiturn",
    "num_fewshot",
    "seed",
    "include_path",
    "confirm_unsafe_code",
)


class PromptConfig(ChatSettings):
    """Print the token ids and the text that `sample`, or `harness` with --task, sends to MODEL, and the stop strings.

    Only the tokenizer is loaded. Give the options that you give to the stage.
    """

    model: CliPositionalArg[str]
    """Folder of a checkpoint or of a LoRA adapter, or NAMESPACE/NAME on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    chat_template: str | None = None
    """chatml (HALOs' own) or a Jinja file (default: the checkpoint's own)."""
    stop: StopStrings = ()
    """Additional stop strings, as a JSON list."""
    prompts: str = ALPACA_EVAL
    """Prompts to sample: alpaca_eval, demo, or a JSON file."""
    task: str | None = Field(None, pattern=TASK_NAME)
    """Name of an lm_eval task or group, whose requests to print instead."""
    first: int = Field(1, ge=1)
    """Number of prompts, or of documents of each task."""
    include_path: str | None = None
    """Folder with your own task files."""
    apply_chat_template: bool = False
    """Apply the chat template to the task's prompts."""
    fewshot_as_multiturn: bool = False
    """Format the few-shot examples as turns of a conversation; requires apply_chat_template."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples in the prompt (default: the task's own number)."""
    seed: tuple[int, int, int, int] = (0, 1234, 1234, 1234)
    """lm_eval's seeds; the last one is that of the choice of few-shot examples."""
    confirm_unsafe_code: bool = False
    """Allow tasks that execute model-written code. This command does not execute any."""
    json_output: Annotated[bool, Field(alias="json")] = False
    """Print JSON."""

    @model_validator(mode="after")
    def _of_one_stage(self) -> PromptConfig:
        ignored = {"prompts"} if self.task else set(OF_A_TASK)
        if wrong := sorted(ignored & self.model_fields_set):
            rule = "cannot be used with --task" if self.task else "requires --task"
            raise ValueError(f"{', '.join(wrong)} {rule}")
        return self

    def harness(self, task: str) -> HarnessConfig:
        """Return the options of the harness stage. Raises ValidationError."""
        own = {"model", "revision", "chat_template", "stop", *OF_A_TASK, *ChatSettings.model_fields}
        chosen = self.model_dump(include=own)
        return HarnessConfig(**chosen, task=task, limit=self.first, output_dir="")


def prompt(config: PromptConfig) -> None:
    """Print the requests. Raises BadInput, DataUnavailable."""
    harness = config.harness(config.task) if config.task else None
    tokenizer = load_tokenizer(config.model, config.revision)
    if harness and not harness.apply_chat_template:
        prompting = Prompting(tokenizer)
    else:
        prompting = Prompting.chat(tokenizer, config.chat_template, config.stop, config.model, config)
    requests = requests_of(harness, prompting) if harness else _sampled(config, prompting)
    if config.json_output:
        print(json.dumps(_document(prompting, requests), indent=2, ensure_ascii=False))
        return
    for request in requests:
        _show(request, prompting)
    for key, value in prompting.described().items():
        print(visible(f"{key.removeprefix('prompt:').replace('_', ' ')}: {value}"))
    print(visible(f"end token: {tokenizer.eos_token} ({tokenizer.eos_token_id})"))
    if prompting.without_system:
        print("the chat template drops the system turn, which has the task's description")


def _sampled(config: PromptConfig, prompting: Prompting) -> list[Request]:
    rows = prompts.load(config.prompts, "prompts").rows[: config.first]
    return [
        Request(
            title=f"{config.prompts}, prompt {number}",
            token_ids=prompting.encode(prompting.render(turns_of(row, config.system_instruction))),
            stop=prompting.stops.all,
        )
        for number, row in enumerate(rows)
    ]


def _document(prompting: Prompting, requests: list[Request]) -> dict[str, Any]:
    tokenizer = prompting.tokenizer
    rows = [
        request.model_dump()
        | {"text": tokenizer.decode(request.token_ids), "continuation": _continuation(request, tokenizer)}
        for request in requests
    ]
    described = {key.removeprefix("prompt:"): value for key, value in prompting.described().items()}
    return {
        **described,
        "stop": prompting.stops.all,
        "stop_token_ids": list(prompting.stops.tokens.values()),
        "end_token": tokenizer.eos_token,
        "end_token_id": tokenizer.eos_token_id,
        "system_text_dropped": bool(prompting.without_system),
        "requests": rows,
    }


def _continuation(request: Request, tokenizer: Any) -> str | None:
    return None if request.continuation_ids is None else str(tokenizer.decode(request.continuation_ids))


def _show(request: Request, prompting: Prompting) -> None:
    print(f"--- {request.title}: {len(request.token_ids)} tokens")
    print(*request.token_ids)
    print(visible(prompting.tokenizer.decode(request.token_ids)))
    if request.continuation_ids is not None:
        print(f"--- scored: {len(request.continuation_ids)} tokens")
        print(*request.continuation_ids)
        print(visible(str(prompting.tokenizer.decode(request.continuation_ids))))
    else:
        print(visible(f"--- ends at: {json.dumps(request.stop, ensure_ascii=False)}"))
