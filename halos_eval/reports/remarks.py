"""Counts of what makes a score less reliable, and a warning for each that is above the suite's threshold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.storage.records import Record

# A record's detail -> (column, words after "N of M")
_DETAILS = {
    "cut_at_max_tokens": ("n_cut", "answers were cut at max_tokens"),
    "empty": ("n_empty", "answers are empty"),
    "unended_thinking": ("n_unended_thinking", "answers ended within their thinking, so they are empty"),
    "without_thinking": (
        "n_without_thinking",
        "answers have no thinking that think_start_token and think_end_token mark, although it is on",
    ),
    "undeclared_thinking": (
        "n_undeclared_thinking",
        "answers contain thinking that nothing declares, so it was scored as the answer (set thinking in the suite, or "
        "think_end_token in halos_eval.yaml)",
    ),
    "truncated_prompts": ("n_truncated_prompts", "prompts were truncated"),
    "dropped_system_texts": ("n_dropped_system_texts", "prompts lost their system text"),
}
_OF_DOCUMENTS = frozenset({"truncated_prompts", "dropped_system_texts"})
"""Details of a harness record that count documents; the others count answers, of which a document may have several."""
UNREAD = f"{ALPACA_EVAL}-n_total"
"""Key of ``Record.missing`` with the reason for judgements that could not be read."""


def counts_of(records: Iterable[Record]) -> dict[str, int | float]:
    """Return the counts by column: PART-n_cut and so on for a task, and ``alpacaeval_n_cut`` for AlpacaEval.

    A count that a stage did not make is absent; 0 means that it was counted.
    """
    return {_column(record, one.name): one.number for record in records for one in _counts(record)} | {
        f"{record.task}-limit": limit for record in records if (limit := limit_of(record))
    }


def warnings_of(records: Iterable[Record], above: float) -> list[str]:
    """Return a warning for each count that is a larger share of what was counted through than ``above``."""
    return [
        f"{record.task or 'alpacaeval'}: {one.number}{f' of {one.items}' if one.known else ''} {one.words}"
        for record in records
        for one in _counts(record)
        if one.number > above * one.items
    ]


def answered_as(record: Record) -> tuple[str, ...]:
    """Return the names of models under which the judge answered; empty for other stages and older records."""
    return tuple(json.loads(record.provenance.inputs.get("judge_answered_as", "[]")))


def limit_of(record: Record) -> int | float | None:
    """Return the number of documents to which a trial was limited, or their share below 1; None for a full run."""
    limit = record.identity.get("settings", {}).get("limit")
    return limit if isinstance(limit, int | float) and limit else None


def trial_of(records: Sequence[Record]) -> str:
    """Return how a trial was limited, with the tasks unless all have the same limit; empty for full runs."""
    tasks = {str(record.task): limit_of(record) for record in records if record.stage == "harness"}
    return describe_limits(tasks)


def describe_limits(tasks: Mapping[str, float | str | None]) -> str:
    """Return the limits in words, with their tasks unless all have the same one; empty without a limit."""
    limits = sorted({limit for limit in tasks.values() if limit}, key=float)
    if set(tasks.values()) == set(limits) and len(limits) == 1:
        return f"limit {limits[0]}"
    groups = {limit: ", ".join(sorted(task for task, one in tasks.items() if one == limit)) for limit in limits}
    return ", ".join(f"limit {limit} for {names}" for limit, names in groups.items())


class _Count(NamedTuple):
    name: str
    """The end of its column's name."""
    number: int
    items: int
    """The items that were counted through."""
    words: str
    """Words after "N of M"."""
    known: bool = True
    """Whether ``items`` is what was counted through; False if it is the number of documents in an older record."""


def _counts(record: Record) -> list[_Count]:
    items = record.coverage.attempted
    answers = record.details.get("generated_answers")
    counts = []
    for key, (name, words) in _DETAILS.items():
        if key in record.details:
            by_answer = record.stage == "harness" and key not in _OF_DOCUMENTS
            of = round(answers) if by_answer and answers else items
            known = not by_answer or answers is not None
            counts.append(_Count(name, round(record.details[key]), of, words, known))
    lost = items - record.coverage.scored
    if record.stage == "judge":
        # The judgements of cut outputs do not count, whether they could be read or not.
        cut = round(record.details.get("cut_outputs", 0))
        # The stage's reason repeats the numbers, and names the first refusal in parentheses.
        _, refused, why = record.missing.get(UNREAD, "").partition(" (refused")
        counts.append(_Count("n_unread", lost - cut, items - cut, f"judgements could not be read{refused}{why}"))
    elif record.stage == "harness":
        counts.append(_Count("n_unscored", lost, items, "documents have no score"))
    return counts


def _column(record: Record, name: str) -> str:
    return f"{record.task}-{name}" if record.task else f"alpacaeval_{name}"
