"""Settings of chat models: system text, arguments of the chat template, thinking, and generation options.

The names are those of lm_eval and vLLM. Lists and mappings are JSON on a command line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from halos_eval.config.settings import FROZEN
from halos_eval.untrusted import parse_json

SWITCHES = ("enable_thinking", "thinking")
"""Arguments by which chat templates turn thinking on or off (Qwen3, ...; DeepSeek V3.1, Granite, ...)."""
THINK_START, THINK_END = "<think>", "</think>"
"""The tags of most models."""

Mode = Literal["on", "off", "default"]
Scalar = bool | int | float | str


def _json_object(value: Any) -> Any:
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError('expected a JSON object, such as {"enable_thinking": true}') from None


def _mode(value: Any) -> Any:
    """Return a mode; YAML reads ``on`` and ``off`` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


ThinkingMode = Annotated[Mode, BeforeValidator(_mode)]
Text = Annotated[str, Field(min_length=1)]
# NoDecode: pydantic-settings doubles the backslashes of JSON.
TemplateArguments = Annotated[dict[str, Scalar], NoDecode, BeforeValidator(_json_object)]


class GenKwargs(BaseModel):
    """Generation options of a task, with lm_eval's names. Those that are not set are the task's own."""

    model_config = FROZEN

    max_gen_toks: int | None = Field(None, ge=1)
    """Maximum tokens of one answer, thinking included: the budget."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling: the probability mass to sample from."""
    top_k: int | None = Field(None, ge=1)
    """Sample from this number of the most likely tokens."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Least probability of a token, as a share of that of the most likely one."""
    repetition_penalty: float | None = Field(None, gt=0)
    """Penalty for tokens that occur in the prompt or the answer; 1 is none."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Penalty for tokens that occur in the answer; 0 is none (vllm only)."""

    @model_validator(mode="after")
    def _of_sampling(self) -> GenKwargs:
        wrong = [name for name in ("top_p", "top_k", "min_p") if getattr(self, name) is not None]
        if self.temperature == 0 and wrong:
            raise ValueError(f"{', '.join(wrong)} has no effect with temperature 0. Remove it, or raise temperature")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options as lm_eval takes them. Its ``do_sample`` follows from the temperature."""
        found = self.model_dump(exclude_none=True)
        # A task's own do_sample: false would set the temperature to 0 (lm_eval 0.4.13, normalize_gen_kwargs).
        return found if self.temperature is None else found | {"do_sample": self.temperature > 0}


def _closed(value: dict[str, Any]) -> dict[str, Any]:
    return GenKwargs.model_validate(value).model_dump(exclude_none=True)


# A mapping, so that a command line has it as one JSON document.
GenerationOptions = Annotated[dict[str, Any], NoDecode, BeforeValidator(_json_object), AfterValidator(_closed)]


class ChatSettings(BaseModel):
    """How a chat model is asked, and how its thinking is separated from its answer."""

    model_config = FROZEN

    system_instruction: Text | None = None
    """Text of the system turn (default: none). That of the checkpoint overrides it."""
    chat_template_args: TemplateArguments = {}
    """Arguments of the chat template, such as reasoning_effort; those of the checkpoint override them."""
    thinking: ThinkingMode | None = None
    """on, off, or default (the model decides). The thinking is removed from the answer before anything reads it."""
    think_start_token: Text | None = None
    """Text that begins the thinking (default: <think>). That of the checkpoint overrides it."""
    think_end_token: Text | None = None
    """Text that ends the thinking (default: </think>). That of the checkpoint overrides it."""

    @model_validator(mode="after")
    def _one_switch(self) -> ChatSettings:
        wanted = {"on": True, "off": False}.get(str(self.thinking))
        for name in SWITCHES:
            value = self.chat_template_args.get(name)
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"chat_template_args: {name} is {value!r}; expected true or false")
            if value is not None and self.thinking is not None and value is not wanted:
                raise ValueError(
                    f"thinking is {self.thinking}, but chat_template_args sets {name} to {value}. Remove one of them"
                )
        return self

    @property
    def mode(self) -> Mode | None:
        """The mode of thinking; None if nothing declares that the model may think."""
        if self.declared:
            return self.declared
        return "default" if self.think_start_token or self.think_end_token else None

    @property
    def declared(self) -> Mode | None:
        """The mode that the settings name themselves; tags alone only tell that the model may think."""
        if self.thinking:
            return self.thinking
        switch = next((self.chat_template_args[name] for name in SWITCHES if name in self.chat_template_args), None)
        return None if switch is None else "on" if switch else "off"


def counted(settings: BaseModel, kind: type[BaseModel], later: frozenset[str]) -> dict[str, Any]:
    """Return the settings of ``kind`` for a fingerprint.

    Settings in ``later`` were added when records existed. They count only if they are set, so that these stay current.
    """
    document = settings.model_dump(mode="json", include=set(kind.model_fields))
    defaults = {name: kind.model_fields[name].get_default() for name in later}
    return {name: value for name, value in document.items() if name not in later or value != defaults[name]}
