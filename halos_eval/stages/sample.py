"""Sample answers with vLLM, in the form that AlpacaEval and HALOs expect.

Drop-in replacement for HALOs' ``train.sample`` (github.com/ContextualAI/HALOs). That one starts over when it is killed,
silently skips prompts that are too long, and has one chat template for all models.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from typing import Any

from pydantic import Field

from halos_eval.checkpoints.known import Carried
from halos_eval.checkpoints.weights import Weights, check_fetched, inspect
from halos_eval.config.suite import ALPACA_EVAL, SamplingSettings
from halos_eval.data import prompts
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, EvaluationFailed, Incomplete
from halos_eval.stages.chat_template import read_template
from halos_eval.stages.engine import Ask, Engine, Finished, seed_of
from halos_eval.stages.identity import Identity, Job
from halos_eval.stages.on_disk import on_disk
from halos_eval.stages.options import ModelConfig
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.run import Outcome, check_still_named, loading, reason_kept, run
from halos_eval.stages.sampled import check_not_all_cut, counts, row_of, thinking_removed, turns_of
from halos_eval.stages.vllm import EngineOptions, Load, load_engine
from halos_eval.storage import filesystem, layout, result_files
from halos_eval.storage.journal import Journal
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef, Coverage, Record, Usage

log = logging.getLogger(__name__)

PROMPTING = "prompting"
"""Key in the journal of how the prompts were made, beside those of the answers."""


class SampleConfig(SamplingSettings, ModelConfig):
    """Sample answers from MODEL for a set of prompts with vLLM."""

    prompts: str = ALPACA_EVAL
    """alpaca_eval (805 prompts from the hub), demo, or a JSON file: a list of objects with 'instruction'."""
    output: str = "outputs.json"
    """File or URL to write: NAME.json as NAME-DIGEST.json, and NAME.record.json, which names it."""
    chat_template: str | None = None
    """chatml (HALOs' own) or a Jinja file (default: the checkpoint's own template)."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs to split the model over."""
    engines: int | None = Field(None, ge=1)
    """Engines with tensor_parallel_size GPUs each (default: one on each GPU if the model fits there, else one)."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM may take; without a GPU the cache is sized by the model's length."""
    max_num_batched_tokens: int | None = Field(None, ge=1)
    """Limit of the tokens that vLLM computes in one step (default: by the vocabulary, so that log-likelihoods fit)."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs: starts sooner, samples slower."""


def sample_identity(
    settings: SamplingSettings,
    prompt_set: str,
    chat_template: str | None,
    checkpoint: CheckpointRef,
    manifest: Manifest | None = None,
) -> Identity:
    """Return the identity. Without a manifest, read the prompts, which may fetch them from the hub."""
    inputs = {"model": checkpoint.digest, "prompts": prompts.digest(prompt_set, "prompts", manifest)}
    if template := read_template(chat_template):
        inputs["chat_template"] = digest_bytes(template.encode())
    return Identity(
        stage="sample",
        checkpoint=checkpoint,
        settings=settings.counted,
        inputs=inputs,
        packages=("vllm",),
    )


def sample(config: SampleConfig, load: Load = load_engine) -> Record:
    """Run the stage on the engine that ``load`` returns.

    Raise BadInput, DataUnavailable, Incomplete, StoreError, EvaluationFailed.
    """
    record = layout.record_beside(config.output)
    with ExitStack() as stack:
        with reason_kept(config, record):
            config = stack.enter_context(on_disk(config))
            manifest = config.load_manifest()
            weights = inspect(config.model, config.revision, manifest, Carried(config.known), config.root)
            weights.limits.check(config.tensor_parallel_size, config.max_model_len)
            checkpoint = weights.reference(config.name, config.location or config.model)
            job = sample_identity(config, config.prompts, config.chat_template, checkpoint, manifest).at(record)
        return run(job, config, lambda: _work(config, weights, job, manifest, load))


def _work(config: SampleConfig, weights: Weights, job: Job, manifest: Manifest | None, load: Load) -> Outcome:
    began = time.monotonic()
    check_fetched(config.model, config.revision, manifest)
    prompt_set = prompts.load(config.prompts, "prompts", manifest)
    parts = f"{config.output.removesuffix('.json')}.parts"
    journal = Journal(job.journal(parts, config.force))
    done = journal.load()
    prompting = done.pop(PROMPTING, {})
    todo = {_key(row): row for row in prompt_set.rows if _key(row) not in done}
    log.info("%d of %d prompts already have answers", len(done), len(prompt_set.rows))
    loaded = began
    if todo:
        with loading(weights):
            engine = load(weights, EngineOptions.of(config))
        way = Prompting.chat(engine.tokenizer, config.chat_template, config.stop, config.model, config)
        prompting = way.described()
        texts = {key: way.render(turns_of(row, config.system_instruction)) for key, row in todo.items()}
        limit = engine.max_model_len
        token_ids = {key: _tokenize(way, row, limit, config.system_instruction) for key, row in todo.items()}
        loaded = time.monotonic()
        with journal, closing(_generate(engine, config, way, token_ids)) as answers:
            for number, (key, answer) in enumerate(answers, 1):
                done[key] = thinking_removed(answer, texts[key], way)
                journal.add(key, done[key])
                if number == 1:
                    journal.add(PROMPTING, prompting)
                if number % max(1, len(todo) // 20) == 0:
                    log.info("sampled %d of %d prompts", len(done), len(prompt_set.rows))
    missing = [row["instruction"] for row in prompt_set.rows if _key(row) not in done]
    if missing:
        raise Incomplete(f"{len(missing)} prompts have no answer; the first is {missing[0][:80]!r}. Run it again")
    check_still_named(weights, journal)
    _check_answers(config, done, journal)
    resumed = 1 - len(todo) / len(done)
    outcome = _write(config, job, prompt_set, done, (began, loaded), resumed)
    return outcome.model_copy(update={"parts": parts, "inputs": prompting | outcome.inputs})


def _check_answers(config: SampleConfig, done: dict[str, Any], journal: Journal) -> None:
    """Raise EvaluationFailed if all answers are empty. They are not kept, so that a retry samples again."""
    check_not_all_cut(done.values(), config.max_tokens)
    if any(one["text"] for answer in done.values() for one in answer["samples"]):
        return
    filesystem.delete(journal.url)
    raise EvaluationFailed(
        f"all {len(done)} answers of {config.model} are empty; none are recorded. Its weights, its chat template or "
        "its end token may be wrong: look at one answer with transformers, fix the checkpoint, and run it again"
    )


def _key(row: dict[str, Any]) -> str:
    return digest_bytes(row["instruction"].encode())[:32]


def _tokenize(prompting: Prompting, row: dict[str, Any], limit: int, system: str | None = None) -> list[int]:
    """Return the token ids of a prompt. Raise BadInput if they and one more do not fit in ``limit`` tokens."""
    ids = prompting.encode(prompting.render(turns_of(row, system)))
    if len(ids) >= limit:
        raise BadInput(
            f"a prompt is too long ({len(ids)} tokens: {row['instruction'][:80]!r}); expected fewer than {limit}. "
            "Raise --max-model-len, or remove the prompt; prompts are never truncated"
        )
    return ids


def _generate(
    engine: Engine, config: SampleConfig, way: Prompting, todo: dict[str, list[int]]
) -> Generator[tuple[str, dict[str, Any]]]:
    """Yield (key, answer) in the order in which prompts finish."""
    asks = (Ask(key, ids, _params(config, key, way)) for key, ids in todo.items())
    for finished in engine.finished(asks):
        yield finished.key, _answer(finished)


def _answer(finished: Finished) -> dict[str, Any]:
    samples = [{"text": one.text.strip(), "tokens": one.tokens, "finish": one.finish} for one in finished.samples]
    return {"prompt_tokens": finished.prompt_tokens, "samples": samples}


def _params(config: SampleConfig, key: str, way: Prompting) -> dict[str, Any]:
    more = {name: getattr(config, name) for name in ("top_k", "min_p", "presence_penalty")}
    return {
        "n": config.samples_per_prompt,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        # One seed per prompt: a resumed run draws the same numbers, whatever else is in the batch.
        "seed": seed_of(config.seed, key),
        "stop": list(way.stops.texts),
        # vLLM looks for stop strings in the text without special tokens
        "stop_token_ids": list(way.stops.tokens.values()),
        "skip_special_tokens": way.thinking is None,  # the tags of some models are special tokens
        **{name: value for name, value in more.items() if value is not None},
    }


def _write(
    config: SampleConfig,
    job: Job,
    prompt_set: prompts.PromptSet,
    done: dict[str, Any],
    clock: tuple[float, float],
    resumed: float,
) -> Outcome:
    rows = [
        {
            "instruction": prompt["instruction"],
            "output": one["text"],
            "generator": job.checkpoint.name,
            "dataset": prompt.get("dataset", prompt_set.name),
            "prompt_id": prompt_id,
            "sample_id": sample_id,
            "type": "sample",
            **row_of(one),
        }
        for prompt_id, prompt in enumerate(prompt_set.rows)
        for sample_id, one in enumerate(done[_key(prompt)]["samples"])
    ]
    data = (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
    folder, _, name = config.output.rpartition("/")
    files = result_files.write(folder or ".", {f"{name.removesuffix('.json')}.json": data})
    answers = [one for answer in done.values() for one in answer["samples"]]
    began, loaded = clock
    return Outcome(
        coverage=Coverage(attempted=len(prompt_set.rows) * config.samples_per_prompt, scored=len(rows)),
        details={
            "avg_length": sum(len(row["output"]) for row in rows) / len(rows),
            "empty": sum(not row["output"] for row in rows),
            **counts(done.values(), config.mode),
        },
        usage=Usage(
            prompt_tokens=sum(answer["prompt_tokens"] for answer in done.values()),
            completion_tokens=sum(one["tokens"] for one in answers),
            load_seconds=loaded - began,
            work_seconds=time.monotonic() - loaded,
            resumed=resumed,
        ),
        files=files,
        inputs=prompt_set.inputs("prompts"),
    )
