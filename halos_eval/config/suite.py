"""Suites: which parts to evaluate, and with which settings. YAML files of the package or of the user."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from halos_eval.config.chat import ChatSettings, GenerationOptions, counted
from halos_eval.config.cluster import DEFAULT_PROFILE
from halos_eval.config.served_judge import Dtype, JudgeChoice, ServedJudge
from halos_eval.config.settings import FROZEN, Settings
from halos_eval.config.yaml_file import parse_yaml, validated
from halos_eval.errors import BadInput
from halos_eval.shipped import shipped
from halos_eval.untrusted import parse_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
ALPACA_EVAL = "alpaca_eval"
"""Name of the part that consists of the sample and judge stages."""
WARN_ABOVE = 0.01
"""Default of ``Suite.warn_above``."""
# lm_eval has names such as egymmlu_arabic_language_(general). No character is special in a path or a pattern of files.
# Names of files and Airflow's column for the name of a task instance (250 characters) contain it; lm_eval has up to 86.
TASK_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.()-]{0,199}$"
JUDGE_LABEL = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


def _json_list(value: Any) -> Any:
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError('expected a JSON list, such as ["###"]') from None


# Decoded here, because pydantic-settings doubles the backslashes of a JSON list: "\n" would not be a newline.
StopStrings = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NoDecode, BeforeValidator(_json_list)]


def _limit(value: Any) -> Any:
    """Return a number of documents, or a share of them. lm_eval would take 1.0 for one document."""
    if value is None:
        return None
    found = value
    if isinstance(value, str):
        with suppress(ValueError):
            found = int(value) if value.isdecimal() else float(value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"expected a number of documents, or a share such as 0.1 (value: {value!r})")
    if not (found >= 1 if isinstance(found, int) else 0 < found < 1):
        raise ValueError(
            f"expected a whole number of documents from 1 on, or a share between 0 and 1 (value: {value!r}). Leave it "
            "out for all documents"
        )
    return found


Limit = Annotated[int | float, BeforeValidator(_limit)]


class SamplingSettings(ChatSettings):
    """Settings for sampling answers; the defaults are those of HALOs."""

    LATER: ClassVar = frozenset(ChatSettings.model_fields) | {
        "top_k", "min_p", "presence_penalty", "reproducible"
    }  # fmt: skip

    dtype: Dtype = "auto"
    """Data type of the weights; auto takes the checkpoint's own."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus sampling: the probability mass to sample from."""
    top_k: int | None = Field(None, ge=1)
    """Sample from this number of the most likely tokens (default: from all)."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Least probability of a token, as a share of that of the most likely one (default: none)."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Penalty for tokens that occur in the answer (default: none)."""
    max_tokens: int = Field(2048, ge=1)
    """Maximum tokens of one answer, thinking included: the budget."""
    samples_per_prompt: int = Field(1, ge=1)
    """Number of answers to each prompt."""
    seed: int = 0
    """Seed. Each prompt derives its own seed from it, so the order of prompts does not matter."""
    stop: StopStrings = ()
    """Additional stop strings, as a JSON list. The model's end token and the template's end of a turn always stop."""
    max_model_len: int | None = None
    """Longest prompt and answer in tokens (default: the model's own limit)."""
    reproducible: bool = False
    """Use vLLM's batch-invariant mode: a result does not depend on what else is computed. Slower; needs an H100."""

    @property
    def counted(self) -> dict[str, Any]:
        """The settings for a fingerprint."""
        return counted(self, SamplingSettings, self.LATER)


class HarnessSettings(ChatSettings):
    """Settings for running a task. By default it gets plain text, with the task's own number of examples."""

    LATER: ClassVar = frozenset(ChatSettings.model_fields) | {"gen_kwargs", "repeats", "reproducible"}

    backend: Literal["vllm", "hf"] = "vllm"
    """Library that runs the model: vllm, or hf (transformers, split over all GPUs)."""
    dtype: Dtype = "auto"
    """Data type of the weights; auto takes the checkpoint's own."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples in the prompt (default: the task's own number)."""
    batch_size: int | Literal["auto"] | None = None
    """Requests at a time (default: auto for vllm; 4 for hf, where auto makes gsm8k_cot fail)."""
    limit: Limit | None = None
    """Evaluate only the first documents of each task: their number, or a share such as 0.1. Use it for trials, not for
    reported scores."""
    gen_kwargs: GenerationOptions = Field({})
    """Options of a task that generates: max_gen_toks, temperature, top_p, top_k, min_p, repetition_penalty,
    presence_penalty (default: the task's own)."""
    repeats: int | None = Field(None, ge=1)
    """Answers to each prompt, for a task with pass@k or a majority vote (default: the task's own number)."""
    apply_chat_template: bool = False
    """Apply the chat template to the prompts."""
    fewshot_as_multiturn: bool = False
    """Format the few-shot examples as turns of a conversation; requires apply_chat_template."""
    seed: tuple[int, int, int, int] = (0, 1234, 1234, 1234)
    """lm_eval's seeds of Python, NumPy, PyTorch and of the choice of few-shot examples."""
    max_model_len: int | None = None
    """Longest prompt and answer in tokens (default: the model's own limit)."""
    reproducible: bool = False
    """Use vLLM's batch-invariant mode: a result does not depend on what else is computed. Slower; needs an H100."""
    confirm_unsafe_code: bool = False
    """Allow tasks that execute model-written code (humaneval, mbpp). It runs in a sandbox."""

    @model_validator(mode="after")
    def _consistent(self) -> HarnessSettings:
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn requires apply_chat_template")
        if self.backend == "hf" and self.batch_size == "auto":
            raise ValueError("batch_size auto fails with the hf backend (in gsm8k_cot). Set a number")
        if self.backend == "hf" and self.reproducible:
            raise ValueError("reproducible is a mode of vllm, and backend is hf. Set reproducible: false for this task")
        return self

    @model_validator(mode="after")
    def _chat(self) -> HarnessSettings:
        """Check that the settings of chat models have an effect."""
        chosen = [name for name in ChatSettings.model_fields if getattr(self, name)]
        if chosen and not self.apply_chat_template:
            raise ValueError(f"{', '.join(chosen)} requires apply_chat_template: true")
        only_vllm = [*(["thinking"] if self.mode else []), *(["repeats"] if self.repeats else [])]
        only_vllm += ["presence_penalty"] if "presence_penalty" in self.gen_kwargs else []
        if only_vllm and self.backend != "vllm":
            raise ValueError(f"{', '.join(only_vllm)} requires backend: vllm (backend: {self.backend})")
        if (self.repeats or 1) > 1 and self.gen_kwargs.get("temperature") == 0:
            raise ValueError("repeats are all equal with temperature 0. Raise temperature, or remove repeats")
        return self

    @property
    def counted(self) -> dict[str, Any]:
        """The settings for a fingerprint."""
        return counted(self, HarnessSettings, self.LATER)


class AlpacaEvalSettings(BaseModel):
    """Settings of the AlpacaEval part of a suite."""

    model_config = FROZEN

    prompts: str = ALPACA_EVAL
    """Prompts to sample: alpaca_eval, demo, or a JSON file."""
    reference: str = ALPACA_EVAL
    """Outputs to compare with: alpaca_eval, demo, or a JSON file."""
    judge: JudgeChoice | tuple[JudgeChoice, ...] = "gpt-4.1"
    """Judge: a name, a YAML file, or {model: ..., profile: ...} for a model that is served while it judges. Of a list,
    the first is the main one; others have columns of their own."""
    swap: bool = False
    """Ask each judge about every pair in both orders, which costs twice as much. The preference is the mean."""
    sampling: SamplingSettings = SamplingSettings()
    """Settings for sampling answers."""
    profile: str | None = None
    """GPU profile for sampling (default: the suite's)."""

    @model_validator(mode="after")
    def _one_sample(self) -> AlpacaEvalSettings:
        if self.sampling.samples_per_prompt != 1:
            raise ValueError("alpaca_eval compares one sample per prompt: samples_per_prompt must be 1")
        return self

    @model_validator(mode="after")
    def _labelled(self) -> AlpacaEvalSettings:
        """Check that each further judge can have columns of its own."""
        labels = [label_of(one) for one in self.judges]
        if not labels:
            raise ValueError("judge is an empty list; expected at least one judge")
        if twice := next((one for one in labels if labels.count(one) > 1), None):
            raise ValueError(f"two judges are called {twice!r}, so their columns would be the same. Rename one file")
        if invalid := next((one for one in labels[1:] if not re.fullmatch(JUDGE_LABEL, one)), None):
            raise ValueError(
                f"judge {invalid!r} cannot be the name of a column; expected letters, digits and '_.-'. Rename its file"
            )
        return self

    @property
    def judges(self) -> tuple[JudgeChoice, ...]:
        """All judges; the first is the main judge."""
        return self.judge if isinstance(self.judge, tuple) else (self.judge,)

    @property
    def judge_titles(self) -> dict[str, JudgeChoice]:
        """All judges by the titles of their jobs: judge, and judge@LABEL for those beside the main one."""
        labels = [None, *map(label_of, self.judges[1:])]
        return {title_of("judge", None, label): one for label, one in zip(labels, self.judges, strict=True)}


def label_of(judge: JudgeChoice) -> str:
    """Return the name of a judge in titles and columns: its name, or that of its file or folder."""
    if isinstance(judge, ServedJudge):
        return judge.label
    name = judge.rstrip("/").rsplit("/", 1)[-1]
    return name.removesuffix(".yaml").removesuffix(".yml")


def title_of(stage: str, task: str | None, label: str | None) -> str:
    """Return the title of a job among all jobs of one suite on one checkpoint."""
    return f"{stage}@{label}" if label else task or stage


class TaskSettings(HarnessSettings):
    """One lm_eval task of a suite. Its own settings override those of ``harness``."""

    metric: str | None = None
    """Metric for the column ``avg``, as METRIC or METRIC,FILTER (default: the first that lm_eval prints)."""
    profile: str | None = None
    """GPU profile for this task (default: the suite's)."""

    def harness(self) -> HarnessSettings:
        """Return the settings of the harness stage alone."""
        return HarnessSettings.model_validate(self.model_dump(include=set(HarnessSettings.model_fields)))


def _reproducible(data: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a suite with ``reproducible`` in the settings of its parts."""
    found = {**data, "harness": _with(data.get("harness"))}
    alpaca = data.get("alpaca_eval")
    if isinstance(alpaca, dict):
        found["alpaca_eval"] = {**alpaca, "sampling": _with(alpaca.get("sampling"))}
    return found


def _with(settings: Any) -> Any:
    return {"reproducible": True, **(settings or {})} if isinstance(settings or {}, dict) else settings


class Suite(BaseModel):
    """A suite of evaluations."""

    model_config = FROZEN

    name: str
    """Name of the file without .yaml."""
    description: str = ""
    """One line that describes the suite."""
    alpaca_eval: AlpacaEvalSettings | None = None
    """Settings of AlpacaEval; None skips it."""
    enforce_eager: bool = False
    """Start vLLM without compiling, for small models and trials."""
    profile: str = DEFAULT_PROFILE
    """GPU profile from the cluster file; a checkpoint's own profile overrides it."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM may use. Without a GPU, the model's length sets the size of the KV cache."""
    max_num_batched_tokens: int | None = Field(None, ge=1)
    """Limit of the tokens that vLLM computes in one step (default: by the vocabulary, so that log-likelihoods fit)."""
    reproducible: bool = False
    """Whether all stages with a model use vLLM's batch-invariant mode; a task's own setting overrides it."""
    packing: Literal["auto", "none"] = "auto"
    """auto: short stages with the same engine settings share a pod and load the model once. none: a pod for each."""
    include_path: str | None = None
    """Folder with your own lm_eval task files."""
    warn_above: float = Field(WARN_ABOVE, ge=0, le=1)
    """Share of answers, prompts or judgements above which cut, empty, truncated or unreadable ones are a warning."""
    harness: dict[str, Any] = {}
    """Settings of all tasks; a task's own settings override them."""
    tasks: dict[str, TaskSettings] = {}
    """lm_eval tasks by name, each with the settings that override ``harness``."""

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = _reproducible(data) if data.get("reproducible") is True else data
        if not isinstance(data.get("tasks"), dict):
            return data
        common = data["harness"] if isinstance(data.get("harness"), dict) else {}
        merged = {
            task: {**common, **(own or {})} if isinstance(own or {}, dict) else own
            for task, own in data["tasks"].items()
        }
        return {**data, "tasks": merged}

    @field_validator("tasks")
    @classmethod
    def _names(cls, tasks: dict[str, TaskSettings]) -> dict[str, TaskSettings]:
        for task in tasks:
            if not re.fullmatch(TASK_NAME, task) or task in {ALPACA_EVAL, "sample", "judge"}:
                raise ValueError(f"task name {task!r} is invalid or reserved; expected the name of an lm_eval task")
        return tasks

    @model_validator(mode="after")
    def _not_empty(self) -> Suite:
        if not self.tasks and self.alpaca_eval is None:
            raise ValueError("a suite needs alpaca_eval or at least one task")
        return self

    @property
    def parts(self) -> list[str]:
        """Names of the parts that can be selected: alpaca_eval and the tasks."""
        return ([ALPACA_EVAL] if self.alpaca_eval else []) + list(self.tasks)

    def settings_of(self, part: str) -> AlpacaEvalSettings | TaskSettings:
        """Return the settings of alpaca_eval or of a task."""
        if part == ALPACA_EVAL and self.alpaca_eval:
            return self.alpaca_eval
        return self.tasks[part]

    def keep(self, wanted: list[str]) -> Suite:
        """Return this suite with only the parts in ``wanted``; an empty list keeps all. Raises BadInput."""
        if not wanted:
            return self
        if unknown := [part for part in wanted if part not in self.parts]:
            raise BadInput(f"suite {self.name} has no {', '.join(unknown)}; available: {', '.join(self.parts)}")
        return self.model_copy(
            update={
                "tasks": {task: settings for task, settings in self.tasks.items() if task in wanted},
                "alpaca_eval": self.alpaca_eval if ALPACA_EVAL in wanted else None,
            }
        )


def folders() -> list[Path]:
    """Return the folders to search for suites. The user's own folder is the first, so its suites override others."""
    own = Settings().suites
    return ([Path(own)] if own else []) + [shipped("suites")]


def suite_names() -> list[str]:
    """Return the names of all suites."""
    return sorted({path.stem for folder in folders() for path in folder.glob("*.yaml")})


def load_suite(name: str) -> Suite:
    """Return a suite by its name or by the path of its file. Raises BadInput with all errors of the file."""
    path = _locate(name)
    where = f"suite {path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{where} cannot be read ({error}). Check the path and its permissions") from error
    document = parse_yaml(data, where)
    if not isinstance(document, dict):
        raise BadInput(f"{where}: expected a YAML mapping with alpaca_eval or tasks")
    if not NAME.fullmatch(path.stem):
        raise BadInput(f"{where}: file name is invalid; expected letters, digits, '-' and '_'. Rename the file")
    return _resolve(validated({**document, "name": path.stem}, Suite, where), path.parent)


def _resolve(suite: Suite, folder: Path) -> Suite:
    """Return the suite with absolute paths of the files in its folder, because a pod runs in another one."""

    def full(name: str) -> str:
        return str((folder / name).absolute()) if Path(name).suffix and (folder / name).is_file() else name

    parts: dict[str, Any] = {"include_path": suite.include_path and str((folder / suite.include_path).absolute())}
    if suite.alpaca_eval:
        names: dict[str, Any] = {key: full(getattr(suite.alpaca_eval, key)) for key in ("prompts", "reference")}
        judges = tuple(
            one.beside(folder) if isinstance(one, ServedJudge) else full(one) for one in suite.alpaca_eval.judges
        )
        names["judge"] = judges if len(judges) > 1 else judges[0]
        parts["alpaca_eval"] = suite.alpaca_eval.model_copy(update=names)
    return suite.model_copy(update=parts)


def place_of(name: str) -> str:
    """Return how another environment finds a suite: by its path, or by its name if it ships with the package.

    Raises BadInput if the suite does not exist.
    """
    path = _locate(name)
    return name if path.parent == shipped("suites") else str(path.absolute())


def _locate(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    for folder in folders():
        if NAME.fullmatch(name) and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise BadInput(f"unknown suite {name!r}; available: {', '.join(suite_names())}. Name one of these or a YAML file")
