"""Load lm_eval's tasks with their data before a model is loaded, and rehearse their scoring without a model."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos_eval.errors import BadInput, DataUnavailable, EvaluationFailed, Incomplete
from halos_eval.hub import hub_errors
from halos_eval.shipped import shipped
from halos_eval.stages.harness.generation import options_of, prepare
from halos_eval.stages.harness.options import HarnessConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)

UNCONFIRMED = "{} executes code that the model writes. Run it in a sandbox, and set --confirm-unsafe-code"


def include_paths(own: str | None) -> list[Path]:
    """Return the folders with tasks besides lm_eval's own: this project's, and the user's."""
    return [shipped("tasks"), *([Path(own)] if own else [])]


def load_tasks(config: HarnessConfig, manager: TaskManager) -> list[Any]:
    """Return the task or group with its data, before a model is loaded. Raise BadInput, DataUnavailable."""
    from datasets.exceptions import DatasetsError

    if config.task not in manager.task_index:
        raise BadInput(
            f"unknown lm_eval task {config.task!r}. `lm_eval ls tasks` lists the available ones; "
            "set --include-path for others"
        )
    if config.confirm_unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # humaneval checks it on import
    elif _executes_code(manager, config.task):
        raise BadInput(UNCONFIRMED.format(config.task))
    try:
        found = manager.load([config.task])
    except (DatasetsError, *hub_errors(), ConnectionError, FileNotFoundError) as error:
        raise DataUnavailable(
            f"the data of {config.task} is unavailable: {error}. Check HF_ENDPOINT and the network. "
            "For a gated dataset, accept its terms on the hub and set HF_TOKEN"
        ) from error
    if not config.confirm_unsafe_code and any(getattr(task, "UNSAFE_CODE", False) for task in found["tasks"].values()):
        raise BadInput(UNCONFIRMED.format(config.task))
    prepare(config, found["tasks"].values())
    group = found["groups"].get(config.task)
    return [group] if group else list(found["tasks"].values())


def _executes_code(manager: TaskManager, task: str) -> bool:
    """Return whether a task's own file declares unsafe code. It is checked before the task's Python is imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = manager.task_index[task].yaml_path
    return bool(path and load_yaml(path, resolve_func=False, recursive=True).get("unsafe_code"))


def evaluate(
    config: HarnessConfig, model: LM, manager: TaskManager, tasks: list[Any], predict_only: bool = False
) -> dict[str, Any]:
    """Return lm_eval's results for ``tasks``; with ``predict_only``, answers are not scored.

    Raise EvaluationFailed if there are none.
    """
    from lm_eval import simple_evaluate

    python_seed, numpy_seed, torch_seed, fewshot_seed = config.seed
    results = simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        gen_kwargs=options_of(config),
        system_instruction=config.system_instruction,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.fewshot_as_multiturn,
        random_seed=python_seed,
        numpy_random_seed=numpy_seed,
        torch_random_seed=torch_seed,
        fewshot_random_seed=fewshot_seed,
        confirm_run_unsafe_code=config.confirm_unsafe_code,
        predict_only=predict_only,
    )
    if not results or not results.get("results"):
        raise EvaluationFailed(f"lm_eval returned no results for {config.task}. Its log above has the reason")
    return dict(results)


def rehearse(config: HarnessConfig, manager: TaskManager, tasks: list[Any]) -> None:
    """Score one document of each task with dummy answers, to fetch what only scoring needs.

    Raise DataUnavailable, Incomplete or ImportError if some of it is unavailable. Any other error is only logged,
    because dummy answers may cause it.
    """
    from lm_eval.models.dummy import DummyLM

    model = DummyLM()
    model.tokenizer = None  # by default it is fetched from the hub
    plain = {"limit": 1, "apply_chat_template": False, "fewshot_as_multiturn": False, "system_instruction": None}
    try:
        evaluate(config.model_copy(update=plain), model, manager, tasks)
    except (DataUnavailable, Incomplete, ImportError):
        raise
    except Exception as error:  # noqa: BLE001 (a task may raise anything)
        log.warning("%s: scoring dummy answers failed (%s: %s)", config.task, type(error).__name__, error)


def leaves(tasks: list[Any]) -> list[Any]:
    """Return the tasks in these tasks and groups."""
    return [leaf for task in tasks for leaf in (task.get_all_tasks() if hasattr(task, "get_all_tasks") else [task])]


def dataset_revisions(tasks: list[Any]) -> dict[str, str]:
    """Return the hub commit of every dataset that was read, or its fingerprint if it is not from the hub."""
    revisions = {}
    for leaf in leaves(tasks):
        name = "/".join(str(part) for part in (leaf.config.dataset_path, leaf.config.dataset_name) if part)
        split = next(iter((leaf.dataset or {}).values()), None)
        if split is not None:
            revisions[f"dataset:{name or leaf.task_name}"] = _revision(split)
    return revisions


def _revision(split: Dataset) -> str:
    # datasets caches a hub repository's tables in a folder that is named after the commit
    folders = {Path(file["filename"]).parent.name for file in split.cache_files}
    commits = sorted(folder for folder in folders if re.fullmatch("[0-9a-f]{40}", folder))
    return ",".join(commits) or f"fingerprint:{split._fingerprint}"
