"""The options of the harness stage, and which of them determine its scores."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from halos_eval.checkpoints.architecture import Limits
from halos_eval.config.suite import TASK_NAME, HarnessSettings, StopStrings
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput
from halos_eval.shipped import shipped
from halos_eval.stages.chat_template import read_template
from halos_eval.stages.harness.own_tasks import digest_folder, digest_outside
from halos_eval.stages.identity import Identity
from halos_eval.stages.options import ModelConfig, StageConfig
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef


class HarnessConfig(HarnessSettings, ModelConfig):
    """Evaluate MODEL on one lm-evaluation-harness task or group."""

    task: str = Field(pattern=TASK_NAME)
    """Name of the task or group."""
    output_dir: str
    """Folder or URL for record.json, results-DIGEST.json and samples/."""
    include_path: str | None = None
    """Folder with your own task files."""
    chat_template: str | None = None
    """chatml (HALOs' own) or a Jinja file (default: the checkpoint's own); used with apply_chat_template."""
    stop: StopStrings = ()
    """Additional stop strings, as a JSON list; used with apply_chat_template. The end of a turn always stops then."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs to split the model over (vllm)."""
    engines: int | None = Field(None, ge=1)
    """Engines with tensor_parallel_size GPUs each (default: one on each GPU if the model fits there, else one)."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM may take; without a GPU the cache is sized by the model's length."""
    max_num_batched_tokens: int | None = Field(None, ge=1)
    """Limit of the tokens that vLLM computes in one step (default: by the vocabulary, so that log-likelihoods fit)."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs: starts sooner, runs slower."""
    save_every: int = Field(512, ge=1)
    """Requests between two saves (hf); a killed run repeats at most that many. vllm's are saved as they finish."""
    answers_only: bool = False
    """Generate the answers without scoring them; `halos-eval score` does that."""
    copy_answers_to: str | None = None
    """Folder or URL that gets a copy of the answers, for a process that cannot reach the store."""


class ScoreConfig(StageConfig):
    """Score the answers of a task that executes model-written code, each in a sandbox. It needs no model and no GPU."""

    answers: CliPositionalArg[str]
    """Folder or URL with the answers that `halos-eval harness` generated."""
    output_dir: str
    """Folder or URL for record.json, results-DIGEST.json and samples/."""
    include_path: str | None = None
    """Folder with your own task files."""


def check_limits(settings: HarnessSettings, limits: Limits, parts: int) -> None:
    """Raise BadInput if a model with these limits cannot be split over ``parts`` GPUs, or is too short.

    The budget of a task's own file is checked when the task is loaded (``longest_answer``).
    """
    vllm = settings.backend == "vllm"
    limits.check(parts if vllm else 1, settings.max_model_len)
    # transformers takes another of several lengths in config.json
    length = settings.max_model_len or (limits.length if vllm else None)
    budget = settings.gen_kwargs.get("max_gen_toks")
    if budget and length and budget >= length:
        raise BadInput(
            f"gen_kwargs: max_gen_toks leaves no token for a prompt ({budget}); expected less than the length of "
            f"{length}. Lower it, or raise max_model_len if the model is longer"
        )


def harness_identity(
    task: str,
    settings: HarnessSettings,
    include_path: str | None,
    chat_template: str | None,
    checkpoint: CheckpointRef,
    manifest: Manifest | None = None,
    stop: tuple[str, ...] = (),
) -> Identity:
    """Return the identity. lm_eval's own tasks are pinned by its version, others by the content of their folder.

    Their data is pinned by the digest in the manifest. Raise BadInput, or DataUnavailable with the manifest's reason
    if the task is unavailable. Chat template and stop strings count only where a chat template is applied.
    """
    own = shipped("tasks")
    inputs = {"model": checkpoint.digest}
    if manifest and manifest.needs(task):
        inputs["data"] = manifest.digest(task)
    chosen = settings.counted
    template = read_template(chat_template)
    if template and settings.apply_chat_template:
        inputs["chat_template"] = digest_bytes(template.encode())
    if (own / f"{task}.yaml").is_file():
        inputs["task"] = digest_folder(own)
    if include_path:
        inputs["include_path"] = digest_folder(Path(include_path))
        if outside := digest_outside(Path(include_path)):
            inputs["task_data"] = outside
    if stop and settings.apply_chat_template:
        chosen["stop"] = list(stop)
    return Identity(
        stage="harness",
        task=task,
        checkpoint=checkpoint,
        settings=chosen,
        inputs=inputs,
        packages=("lm-eval", "vllm") if settings.backend == "vllm" else ("lm-eval",),
    )
