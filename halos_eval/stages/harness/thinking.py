"""Thinking in the answers to lm_eval's requests: removed before anything is scored, and kept beside the samples.

A document whose answer used up its budget has no score: it is neither wrong nor right. lm_eval does not see it when it
computes metrics, errors and averages of groups.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.errors import EvaluationFailed
from halos_eval.stages.harness.tasks import leaves
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.run import Outcome
from halos_eval.stages.thinking import CUT, LEAST_ENDED, Answer, has_undeclared
from halos_eval.storage.records import Score

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM


class Thought(BaseModel):
    """The answers to the prompt of one document, with what was removed from them."""

    model_config = FROZEN

    prompt: str
    """The prompt as text."""
    answers: list[Answer] = []
    """The answers, in the order of their requests."""

    @property
    def cut(self) -> bool:
        """Whether the budget was used up by some answer. With fewer answers, pass@k would be another metric."""
        return any(one.cut for one in self.answers)


class Thoughts(BaseModel):
    """The answers of a task without their thinking, and the thinking."""

    declared: str | None = None
    """The mode of thinking; None if nothing declares that the model may think."""
    documents: dict[str, dict[int, Thought]] = {}
    """By task and number of the document; empty if nothing is declared."""
    undeclared: int = 0
    """Answers with thinking that nothing declares."""

    def add(self, request: Instance, raw: str, prompting: Prompting) -> str:
        """Return an answer without its thinking. ``raw`` ends with ``CUT`` if the budget was used up."""
        prompt, options = request.args[:2]
        if prompting.thinking is None:
            self.undeclared += has_undeclared(prompt, raw)
            return raw
        text = raw.removesuffix(CUT)
        found = prompting.thinking.separated(prompt, text, text != raw, [*until(options), *prompting.after_thinking])
        thought = self.documents.setdefault(request.task_name, {}).setdefault(request.doc_id, Thought(prompt=prompt))
        thought.answers.append(found)
        return found.text

    @property
    def answers(self) -> list[Answer]:
        """All answers of a model that may think."""
        return [one for found in self.documents.values() for thought in found.values() for one in thought.answers]

    @property
    def details(self) -> dict[str, float]:
        """The counts for the record."""
        if not self.documents:
            return {"undeclared_thinking": self.undeclared} if self.undeclared else {}
        answers = self.answers
        found: dict[str, float] = {
            "cut_at_max_tokens": sum(one.cut for one in answers),
            "empty": sum(not one.text.strip() for one in answers),
            "unended_thinking": sum(one.unended for one in answers),
        }
        return found | ({"without_thinking": sum(not one.thinking for one in answers)} if self.declared == "on" else {})

    def cut_of(self, task: str) -> set[int]:
        """Return the documents of ``task`` whose budget was used up."""
        return {number for number, thought in self.documents.get(task, {}).items() if thought.cut}

    def leave_out(self, tasks: Sequence[Any]) -> None:
        """Let lm_eval score only documents whose answers have ended, once all ``tasks`` have their answers."""
        for leaf in leaves([*tasks]):
            leaf.apply_filters = self._filtered(leaf, leaf.apply_filters)

    def _filtered(self, leaf: Any, apply_filters: Callable[[], Any]) -> Callable[[], Any]:
        def filtered() -> Any:
            result = apply_filters()
            if cut := self.cut_of(leaf.task_name):
                if cut >= {one.doc_id for one in leaf.instances}:
                    raise EvaluationFailed(
                        f"all {len(cut)} documents of {leaf.task_name} have an answer that was cut at its budget; "
                        "none is scored. Raise gen_kwargs: max_gen_toks, and max_model_len"
                    )
                leaf.doc_iterator = _without(leaf.doc_iterator, cut)
            return result

        return filtered

    def noted(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return lm_eval's results with the thinking in the samples."""
        samples = {
            task: [self._with_thinking(task, row) for row in rows] for task, rows in results.get("samples", {}).items()
        }
        return results | {"samples": samples} if self.documents else results

    def _with_thinking(self, task: str, row: dict[str, Any]) -> dict[str, Any]:
        thought = self.documents.get(task, {}).get(row["doc_id"])
        return row | {"thinking": [one.thinking for one in thought.answers]} if thought else row

    def contents(self) -> dict[str, bytes]:
        """Return the content of cut/TASK.jsonl.gz by name: the documents that are not scored."""
        found = {}
        for task, documents in self.documents.items():
            rows = [_row(number, documents[number]) for number in sorted(self.cut_of(task))]
            if rows:
                lines = b"".join(json.dumps(row, ensure_ascii=True).encode() + b"\n" for row in rows)
                found[f"cut/{task}.jsonl.gz"] = gzip.compress(lines, mtime=0)
        return found

    def corrected(self, outcome: Outcome, results: Mapping[str, Any]) -> Outcome:
        """Return the outcome with documents that were cut as not scored.

        If these are too many, the score of the others does not represent the task. It is missing then, and the reason
        has the bounds of the score over all documents.
        """
        count = sum(len(self.cut_of(task)) for task in self.documents)
        if not count:
            return outcome
        coverage = outcome.coverage.model_copy(update={"attempted": outcome.coverage.attempted + count})
        reasons = {score: self._withheld(score, results) for score in outcome.scores}
        missing = {f"{one.task}-{one.metric},{one.filter}": why for one, why in reasons.items() if why}
        scores = tuple(one for one, why in reasons.items() if not why)
        update = {"coverage": coverage, "scores": scores, "missing": outcome.missing | missing}
        return outcome.model_copy(update=update)

    def _withheld(self, score: Score, results: Mapping[str, Any]) -> str | None:
        """Return why a score does not represent its task or group; None if it does."""
        tasks = members(score.task, results.get("group_subtasks", {}))
        cut = sum(len(self.cut_of(task)) for task in tasks)
        scored = sum(results["n-samples"][task]["effective"] for task in tasks if task in results["n-samples"])
        if scored >= LEAST_ENDED * (scored + cut):
            return None
        reason = f"{cut} of {scored + cut} documents have an answer that was cut at its budget"
        if _is_share(score, results):
            low, high = scored * score.value / (scored + cut), (scored * score.value + cut) / (scored + cut)
            reason += f"; between {low:.4f} if these are wrong and {high:.4f} if they are right"
        return f"{reason}. Raise gen_kwargs: max_gen_toks, and max_model_len"


def _row(number: int, thought: Thought) -> dict[str, Any]:
    return {
        "doc_id": number,
        "prompt": thought.prompt,
        "resps": [one.text for one in thought.answers],
        "thinking": [one.thinking for one in thought.answers],
        "cut": [one.cut for one in thought.answers],
    }


def _without(iterate: Callable[..., Iterator[tuple[int, Any]]], cut: set[int]) -> Callable[..., Any]:
    return lambda **options: ((number, document) for number, document in iterate(**options) if number not in cut)


def _is_share(score: Score, results: Mapping[str, Any]) -> bool:
    """Return whether a score is the mean of values from 0 to 1, one for each document."""
    rows = results.get("samples", {}).get(score.task, ())
    values = [row.get(score.metric) for row in rows if row.get("filter") == score.filter]
    if not values or not all(isinstance(one, Real) and 0 <= float(one) <= 1 for one in values):
        return False
    return math.isclose(sum(map(float, values)) / len(values), score.value, abs_tol=1e-9)


def members(task: str, groups: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the tasks of a group and of the groups in it; of a task, itself."""
    return set().union(*(members(one, groups) for one in groups[task])) if groups.get(task) else {task}


def until(options: Mapping[str, Any]) -> list[str]:
    """Return the stop strings of a task's generation options."""
    found = options.get("until") or []
    return [found] if isinstance(found, str) else list(found)


def separating(model: LM, prompting: Prompting) -> Thoughts:
    """Make ``model`` give answers without their thinking; return what is removed, which grows with the answers.

    A task's stop strings end the answer, but are not sent to a model that may think: they would end its thinking.
    """
    thoughts = Thoughts(declared=prompting.thinking and prompting.thinking.mode)
    ask = model.generate_until

    def generate_until(requests: list[Instance], **options: Any) -> list[str]:
        sent = [_sent(one, prompting) for one in requests]
        return [thoughts.add(one, raw, prompting) for one, raw in zip(requests, ask(sent, **options), strict=True)]

    model.generate_until = generate_until
    return thoughts


def _sent(request: Instance, prompting: Prompting) -> Instance:
    """Return a request as the model gets it: one that may think has no stop strings."""
    if not prompting.thinking:
        return request
    prompt, options, *rest = request.args
    found = copy.copy(request)
    found.arguments = (prompt, {**options, "until": []}, *rest)
    return found
