"""Run one lm-evaluation-harness task, and keep all that it gives.

lm_eval's own tracker swallows errors while saving, and its cache keys generated text by arguments that it never looks
up again; so results are written here, and finished requests are journaled here.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pydantic_settings import CliPositionalArg

from halos_eval.checkpoints.weights import Weights, check_fetched, inspect
from halos_eval.config.suite import TASK_NAME, HarnessSettings
from halos_eval.data.replay import replayed
from halos_eval.digests import digest_bytes, digest_files, digest_json
from halos_eval.errors import BadInput, DataUnavailable, EvaluationFailed, Incomplete
from halos_eval.hub import hub_errors
from halos_eval.shipped import shipped
from halos_eval.stages.chat_template import read_template
from halos_eval.stages.harness import sandbox
from halos_eval.stages.harness.task_index import task_manager
from halos_eval.stages.identity import Identity, Job
from halos_eval.stages.options import StageConfig
from halos_eval.stages.run import Outcome, reason_kept, run
from halos_eval.stages.vllm import VLLM_ENVIRONMENT, memory_arguments
from halos_eval.storage import filesystem, layout
from halos_eval.storage.journal import Journal
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef, Coverage, Record, Score, Usage

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)

HF_BATCH_SIZE = 4  # HALOs' own; its README warns of auto with gsm8k_cot


class HarnessConfig(HarnessSettings, StageConfig):
    """Evaluate MODEL on one lm-evaluation-harness task or group."""

    model: CliPositionalArg[str]
    """Folder of a checkpoint or of a LoRA adapter, or NAMESPACE/NAME on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    task: str = Field(pattern=TASK_NAME)
    """Name of the task or group."""
    output_dir: str
    """Folder or URL for record.json, results.json and samples/."""
    include_path: str | None = None
    """Folder with task files of your own."""
    chat_template: str | None = None
    """chatml (HALOs' own) or a Jinja file (default: the checkpoint's own); used with apply_chat_template."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs to split the model over (vllm)."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM may take; without a GPU the cache is sized by the model's length."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs: starts sooner, runs slower."""
    save_every: int = Field(512, ge=1)
    """Requests between two savings: what a kill can cost."""


def harness_identity(
    task: str,
    settings: HarnessSettings,
    include_path: str | None,
    chat_template: str | None,
    checkpoint: CheckpointRef,
    manifest: Manifest | None = None,
) -> Identity:
    """Return the identity. lm_eval's own tasks are pinned by its version, others by the content of their folder.

    Their data is pinned by the manifest's digest of its content. Raises BadInput, and DataUnavailable with the
    manifest's reason where the task cannot be had.
    """
    own = shipped("tasks")
    inputs = {"model": checkpoint.digest}
    if manifest and manifest.needs(task):
        inputs["data"] = manifest.digest(task)
    if template := read_template(chat_template):
        inputs["chat_template"] = digest_bytes(template.encode())
    if (own / f"{task}.yaml").is_file():
        inputs["task"] = _digest_folder(own)
    if include_path:
        inputs["include_path"] = _digest_folder(Path(include_path))
    return Identity(
        stage="harness",
        task=task,
        checkpoint=checkpoint,
        settings=settings.model_dump(mode="json", include=set(HarnessSettings.model_fields)),
        inputs=inputs,
        packages=("lm-eval", "vllm") if settings.backend == "vllm" else ("lm-eval",),
    )


def _digest_folder(folder: Path) -> str:
    if not folder.is_dir():
        raise BadInput(f"--include-path {folder}: there is no such folder")
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return digest_files(folder, [str(path) for path in files if path.suffix != ".pyc"])


def harness(config: HarnessConfig) -> Record:
    """Run the stage. Raises BadInput, DataUnavailable, StoreError, EvaluationFailed."""
    record = filesystem.join(config.output_dir, layout.RECORD)
    with reason_kept(config, record):
        manifest = config.load_manifest()
        weights = inspect(config.model, config.revision, manifest)
        checkpoint = weights.reference(config.name, config.model)
        identity = harness_identity(
            config.task, config, config.include_path, config.chat_template, checkpoint, manifest
        )
        job = identity.at(record)

    def work() -> Outcome:
        check_fetched(config.model, config.revision, manifest)
        with replayed(manifest):
            outcome = _work(config, weights, job)
        staged = manifest.needs(config.task) if manifest else []
        more = {f"{item.kind}:{item.repo}": item.revision or item.digest for item in staged if item.kind != "dataset"}
        return outcome.model_copy(update={"inputs": more | outcome.inputs})

    return run(job, config, work)


def _work(config: HarnessConfig, weights: Weights, job: Job) -> Outcome:
    began = time.monotonic()
    manager = task_manager([config.task], include_paths(config.include_path))
    tasks = load_tasks(config, manager)
    model = _load_model(config, weights)
    if config.confirm_unsafe_code:
        sandbox.close_network_in_children()  # after the model's own processes have started: they need it
    parts = filesystem.join(config.output_dir, "parts")
    loaded = time.monotonic()
    with Journal(job.journal(parts, config.force), seconds=0) as journal:
        requests = _journaled(model, journal, config.save_every)
        results = _evaluate(config, model, manager, tasks)
    filesystem.delete(job.record)  # an older record must not vouch for the new files
    files = _save(config, results)
    return Outcome(
        **_scores(results),
        coverage=_coverage(results),
        usage=Usage(
            load_seconds=loaded - began,
            work_seconds=time.monotonic() - loaded,
            resumed=requests["resumed"] / max(1, requests.total()),
        ),
        files=files,
        inputs=_dataset_revisions(tasks),
        parts=parts,
    )


def include_paths(own: str | None) -> list[Path]:
    """Folders with tasks besides lm_eval's own: this project's, and the user's."""
    return [shipped("tasks"), *([Path(own)] if own else [])]


def load_tasks(config: HarnessConfig, manager: TaskManager) -> list[Any]:
    """The task or group with its data, before a model is loaded. Raises BadInput, DataUnavailable."""
    from datasets.exceptions import DatasetsError

    if config.task not in manager.task_index:
        raise BadInput(f"there is no lm_eval task {config.task!r}: see `lm_eval ls tasks`, or give --include-path")
    if config.confirm_unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # humaneval asks for it when it is imported
    elif _executes_code(manager, config.task):
        raise BadInput(f"{config.task} executes code that the model writes: give --confirm-unsafe-code, in a sandbox")
    try:
        found = manager.load([config.task])
    except (DatasetsError, *hub_errors(), ConnectionError, FileNotFoundError) as error:
        raise DataUnavailable(
            f"the data of {config.task} cannot be had: {error}. Check HF_ENDPOINT and the network; a gated dataset "
            "needs HF_TOKEN and its terms accepted"
        ) from error
    if not config.confirm_unsafe_code and any(getattr(task, "UNSAFE_CODE", False) for task in found["tasks"].values()):
        raise BadInput(f"{config.task} executes code that the model writes: give --confirm-unsafe-code, in a sandbox")
    group = found["groups"].get(config.task)
    return [group] if group else list(found["tasks"].values())


def _executes_code(manager: TaskManager, task: str) -> bool:
    """Whether a task's own file says so; asked before its Python is imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = manager.task_index[task].yaml_path
    return bool(path and load_yaml(path, resolve_func=False, recursive=True).get("unsafe_code"))


def _load_model(config: HarnessConfig, weights: Weights) -> LM:
    os.environ.update(VLLM_ENVIRONMENT)
    from lm_eval.api.registry import get_model

    arguments: dict[str, Any] = {
        "pretrained": weights.model,
        "tokenizer": weights.tokenizer,
        "dtype": config.dtype,
        "trust_remote_code": False,
        "batch_size": config.batch_size or ("auto" if config.backend == "vllm" else HF_BATCH_SIZE),
    }
    if weights.revision:
        arguments["revision"] = weights.revision
        if weights.tokenizer == weights.model and config.backend == "vllm":
            arguments["tokenizer_revision"] = weights.revision
    if config.backend == "vllm":
        arguments |= {
            "seed": config.seed[2],
            "max_model_len": config.max_model_len,
            "tensor_parallel_size": config.tensor_parallel_size,
            "enforce_eager": config.enforce_eager,
            "load_format": "safetensors",
            **memory_arguments(weights, config.dtype, config.max_model_len, config.gpu_memory_utilization),
        }
        if weights.adapter:
            arguments |= {"lora_local_path": weights.adapter, "max_lora_rank": weights.adapter_rank}
    else:
        from torch.cuda import is_available

        arguments |= {"use_safetensors": True, "max_length": config.max_model_len}
        # parallelize splits the layers over the GPUs, as HALOs does; without a GPU it would offload them to the disk
        arguments |= {"parallelize": True} if is_available() else {"device": "cpu"}
        if weights.adapter:
            arguments["peft"] = weights.adapter
    model = get_model(config.backend)(**arguments)
    template = read_template(config.chat_template)
    if template:
        model.tokenizer.chat_template = model.hf_chat_template = template
    if config.apply_chat_template and not model.tokenizer.chat_template:
        raise BadInput(
            f"{config.model} has no chat template: give --chat-template chatml or set apply_chat_template off"
        )
    return model


def _journaled(model: LM, journal: Journal, save_every: int) -> Counter[str]:
    """Make the model's three methods keep finished chunks and skip them in a later run.

    Chunks are cut from the whole list of requests, so a resumed run makes the same batches and gets the same numbers.
    Gives the requests, counted as they are answered: ``computed`` or ``resumed``.
    """
    done = journal.load()
    requests_by: Counter[str] = Counter()

    def resumable(method: str) -> Callable[[list[Any]], list[Any]]:
        compute = getattr(model, method)

        def answer(requests: list[Any], **options: Any) -> list[Any]:
            answers: list[Any] = []
            for start in range(0, len(requests), save_every):
                chunk = requests[start : start + save_every]
                key = digest_json([method, start, [request.args for request in chunk]])
                requests_by["resumed" if key in done else "computed"] += len(chunk)
                if key not in done:
                    done[key] = compute(chunk, **options)
                    journal.add(key, done[key])
                    log.info("%s: %d of %d requests", method, start + len(chunk), len(requests))
                answers += [tuple(one) if isinstance(one, list) else one for one in done[key]]
            return answers

        return answer

    for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, method, resumable(method))
    return requests_by


def _evaluate(config: HarnessConfig, model: LM, manager: TaskManager, tasks: list[Any]) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    python_seed, numpy_seed, torch_seed, fewshot_seed = config.seed
    results = simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.fewshot_as_multiturn,
        random_seed=python_seed,
        numpy_random_seed=numpy_seed,
        torch_random_seed=torch_seed,
        fewshot_random_seed=fewshot_seed,
        confirm_run_unsafe_code=config.confirm_unsafe_code,
    )
    if not results or not results.get("results"):
        raise EvaluationFailed(f"lm_eval gave no results for {config.task}: read its log above")
    return dict(results)


def rehearse(config: HarnessConfig, manager: TaskManager, tasks: list[Any]) -> None:
    """Score nonsense answers to one document of each task: what is needed only for scoring is fetched, or found absent.

    Raises what says that something cannot be had; whatever else a task thinks of nonsense is no harm.
    """
    from lm_eval.models.dummy import DummyLM

    model = DummyLM()
    model.tokenizer = None  # its own would be fetched from the hub
    plain = {"limit": 1, "apply_chat_template": False, "fewshot_as_multiturn": False}
    try:
        _evaluate(config.model_copy(update=plain), model, manager, tasks)
    except (DataUnavailable, Incomplete, ImportError):
        raise
    except Exception as error:  # noqa: BLE001 (a task may raise anything)
        log.warning("%s: its scoring could not be tried (%s: %s)", config.task, type(error).__name__, error)


def _save(config: HarnessConfig, results: dict[str, Any]) -> dict[str, str]:
    """Write results.json and samples/TASK.jsonl.gz; their digests by name."""
    from lm_eval.utils import handle_non_serializable

    def encode(document: Any) -> bytes:
        return json.dumps(document, default=handle_non_serializable, ensure_ascii=False).encode()

    samples = results.pop("samples", {})
    contents = {"results.json": encode(results)}
    for task, rows in samples.items():
        # mtime=0: the same samples give the same bytes
        contents[f"samples/{task}.jsonl.gz"] = gzip.compress(b"\n".join(encode(row) for row in rows) + b"\n", mtime=0)
    for name, data in contents.items():
        filesystem.write_bytes(filesystem.join(config.output_dir, name), data)
    results["samples"] = samples
    return {name: digest_bytes(data) for name, data in contents.items()}


def _scores(results: dict[str, Any]) -> dict[str, Any]:
    """Every metric with its filter and stderr, and what is missing, as keywords of Outcome."""
    scores, missing = [], {}
    # A group without a score of its own has no breakdown: then its tasks stand for themselves.
    scored = {task for task, row in results["results"].items() if any("," in key for key in row)}
    groups = results.get("group_subtasks", {}).items()
    parent = {child: group for group, children in groups if group in scored for child in children}
    for task, row in results["results"].items():
        for key in sorted(row):
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr"):
                continue
            value, stderr = row[key], row.get(f"{metric}_stderr,{filter_name}")
            if not _is_number(value):
                missing[f"{task}-{metric},{filter_name}"] = f"lm_eval gave {value!r}"
                continue
            better = results.get("higher_is_better", {}).get(task, {}).get(metric)
            scores.append(
                Score(
                    task=task,
                    group=parent.get(task),
                    metric=metric,
                    filter=filter_name,
                    value=float(value),
                    stderr=float(stderr) if _is_number(stderr) else None,
                    higher_is_better=better,
                )
            )
    if not scores:
        raise EvaluationFailed(f"lm_eval gave no number: {missing or 'no metric at all'}")
    return {"scores": tuple(scores), "missing": missing}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _coverage(results: dict[str, Any]) -> Coverage:
    counts = results.get("n-samples", {})
    scored = sum(len({row["doc_id"] for row in rows}) for rows in results["samples"].values())
    return Coverage(attempted=sum(count["effective"] for count in counts.values()), scored=scored)


def _dataset_revisions(tasks: list[Any]) -> dict[str, str]:
    """Hub commit (or the data's own fingerprint, off the hub) of every dataset that was read."""
    leaves = [leaf for task in tasks for leaf in (task.get_all_tasks() if hasattr(task, "get_all_tasks") else [task])]
    revisions = {}
    for leaf in leaves:
        name = "/".join(str(part) for part in (leaf.config.dataset_path, leaf.config.dataset_name) if part)
        split = next(iter((leaf.dataset or {}).values()), None)
        if split is not None:
            revisions[f"dataset:{name or leaf.task_name}"] = _revision(split)
    return revisions


def _revision(split: Dataset) -> str:
    # datasets caches a hub repository's tables in a folder that is called by the commit
    folders = {Path(file["filename"]).parent.name for file in split.cache_files}
    commits = sorted(folder for folder in folders if re.fullmatch("[0-9a-f]{40}", folder))
    return ",".join(commits) or f"fingerprint:{split._fingerprint}"
