"""The suite's options for a task that generates: are they applicable, and does its scoring use several answers?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from halos_eval.config.chat import GenKwargs
from halos_eval.errors import BadInput
from halos_eval.stages.harness.options import HarnessConfig

GENERATES = "generate_until"
NAMED_COUNT = re.compile(r"@(\d+)")


def prepare(config: HarnessConfig, tasks: Iterable[Any]) -> None:
    """Set the number of answers of lm_eval's ``tasks``. Raise BadInput for options that have no effect on them."""
    tasks = list(tasks)
    scored = [task.task_name for task in tasks if task.OUTPUT_TYPE != GENERATES]
    if scored and config.declared:
        raise BadInput(
            f"{scored[0]} measures log-likelihoods, for which a model cannot think (thinking: {config.declared}). Set "
            "thinking: null for this task"
        )
    begun = [task.task_name for task in tasks if getattr(task.config, "gen_prefix", None)]
    if begun and config.declared in {"on", "default"}:
        raise BadInput(
            f"{begun[0]} begins the answer for the model (gen_prefix), so that it cannot think first (thinking: "
            f"{config.declared}). Set thinking: off or null for this task, or use another one"
        )
    if len(scored) == len(tasks) and (options := [name for name in ("gen_kwargs", "repeats") if getattr(config, name)]):
        raise BadInput(
            f"{' and '.join(options)} has no effect on {config.task}, which measures log-likelihoods. Remove it for "
            "this task"
        )
    if config.repeats is not None:
        for task in tasks:
            if task.OUTPUT_TYPE == GENERATES:
                _check_repeats(config, task, config.repeats)
                task.set_config("repeats", config.repeats)


def options_of(config: HarnessConfig) -> dict[str, Any] | None:
    """Return the generation options as lm_eval takes them; None for those of the task."""
    return GenKwargs.model_validate(config.gen_kwargs).options or None


def _check_repeats(config: HarnessConfig, task: Any, repeats: int) -> None:
    """Raise BadInput if ``task`` ignores some of several answers, or if they are all equal."""
    filters: Sequence[Mapping[str, Any]] = task.config.filter_list or ()
    if repeats > 1 and not any(map(_uses_several, filters)):
        raise BadInput(
            f"repeats is {repeats}, but {task.task_name} scores only the first answer. Remove repeats, or use a task "
            "with pass@k or a majority vote, such as humaneval_64 or gsm8k_cot_self_consistency"
        )
    for one in filters:
        _check_name(task.task_name, one, repeats)
    options = {**(task.config.generation_kwargs or {}), **(options_of(config) or {})}
    if repeats > 1 and not (options.get("temperature") and options.get("do_sample") is not False):
        raise BadInput(
            f"repeats is {repeats}, but the answers to {task.task_name} are greedy, so all are equal. Set gen_kwargs: "
            "{temperature: ...}, or remove repeats"
        )


def _uses_several(ensemble: Mapping[str, Any]) -> bool:
    """Return whether a filter of lm_eval gives its task more than the first answer, or a vote over several."""
    functions = [step["function"] for step in ensemble["filter"]]
    return "take_first" not in functions or "majority_vote" in functions


def _check_name(task: str, ensemble: Mapping[str, Any], repeats: int) -> None:
    """Raise BadInput if a filter is called NAME@N, but would not use N answers."""
    named = NAMED_COUNT.search(ensemble["name"])
    if named is None:
        return
    taken = next((step["k"] for step in ensemble["filter"] if step["function"] == "take_first_k"), None)
    count = int(named[1])
    if repeats < count or (taken is None and repeats != count):
        raise BadInput(
            f"repeats is {repeats}, but {task} has the score {ensemble['name']}; expected "
            f"{'at least ' if taken else ''}{count}. Set repeats to that, or remove it"
        )
