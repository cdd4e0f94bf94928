"""Sampled answers without their thinking: what the judge and length control see, and what is counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from halos_eval.errors import EvaluationFailed
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.thinking import has_undeclared, without_special


def turns_of(row: Mapping[str, Any], system_instruction: str | None) -> list[dict[str, Any]]:
    """Return the conversation that asks a prompt."""
    system = [{"role": "system", "content": system_instruction}] if system_instruction else []
    return [*system, {"role": "user", "content": row["instruction"]}]


def thinking_removed(answer: Mapping[str, Any], prompt: str, prompting: Prompting) -> dict[str, Any]:
    """Return a finished answer for the journal: each sample with its thinking apart.

    :param prompt: the text that the model continued.
    """
    return {**answer, "samples": [_separated(one, prompt, prompting) for one in answer["samples"]]} | (
        {"without_system": True} if prompt in prompting.without_system else {}
    )


def _separated(sample: Mapping[str, Any], prompt: str, prompting: Prompting) -> dict[str, Any]:
    if prompting.thinking is None:
        return {**sample, **({"undeclared": True} if has_undeclared(prompt, sample["text"]) else {})}
    cut = sample["finish"] == "length"
    found = prompting.thinking.separated(prompt, sample["text"], cut, prompting.after_thinking)
    text = without_special(found.text, prompting.special).strip()
    return {**sample, "text": text, "thinking": found.thinking, "cut": found.cut, "unended": found.unended}


def row_of(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the outputs have besides the answer, of a model that may think."""
    if "thinking" not in sample:
        return {}
    return {"thinking": sample["thinking"], **({"cut": True} if sample["cut"] else {})}


def counts(answers: Iterable[Mapping[str, Any]], mode: str | None) -> dict[str, float]:
    """Return the counts for the record of all finished answers of a model with this mode of thinking."""
    answers = list(answers)
    samples = [one for answer in answers for one in answer["samples"]]
    found: dict[str, float] = {"cut_at_max_tokens": sum(one.get("cut", one["finish"] == "length") for one in samples)}
    if any("thinking" in one for one in samples):
        found["unended_thinking"] = sum(one.get("unended", False) for one in samples)
        if mode == "on":
            found["without_thinking"] = sum(not one.get("thinking") for one in samples)
    elif undeclared := sum(one.get("undeclared", False) for one in samples):
        found["undeclared_thinking"] = undeclared
    if dropped := sum(answer.get("without_system", False) for answer in answers):
        found["dropped_system_texts"] = dropped
    return found


def check_not_all_cut(answers: Iterable[Mapping[str, Any]], budget: int) -> None:
    """Raise EvaluationFailed if the ``budget`` was used up by all answers of a model that may think."""
    samples = [one for answer in answers for one in answer["samples"]]
    if all(one.get("cut") for one in samples):
        raise EvaluationFailed(
            f"all {len(samples)} answers were cut at {budget} tokens; none are recorded. Raise max_tokens, the budget "
            "of thinking and answer, and max_model_len"
        )
