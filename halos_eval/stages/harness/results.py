"""Convert lm_eval's results to files and to scores of the record."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from halos_eval.errors import EvaluationFailed
from halos_eval.stages.harness.clusters import clustered_error
from halos_eval.stages.harness.thinking import Thoughts
from halos_eval.stages.run import Outcome
from halos_eval.storage import result_files
from halos_eval.storage.records import Coverage, Score, Usage

BYPASS = "bypass"
"""lm_eval's metric of tasks whose answers are not scored."""
NOT_SCORED = "lm_eval did not score the answers (bypass)"


NO_USAGE = Usage(load_seconds=0, work_seconds=0)
"""Stands for the usage of an outcome until its stage knows it."""


def scored(
    output_dir: str, results: dict[str, Any], warned: Mapping[str, int], thoughts: Thoughts | None = None
) -> Outcome:
    """Write lm_eval's results to ``output_dir``; return what is recorded of them. Raise EvaluationFailed, StoreError.

    :param warned: counts of warnings, by the name of the detail in the record.
    :param thoughts: the thinking of the model's answers.
    """
    thoughts = thoughts or Thoughts()
    files = result_files.write(output_dir, contents_of(thoughts.noted(results)) | thoughts.contents())
    scores, missing = scores_of(results)
    outcome = Outcome(
        scores=tuple(scores),
        missing=missing,
        coverage=coverage_of(results),
        details=dict(warned),
        usage=NO_USAGE,
        files=files,
        inputs=examples_of(results),
    )
    return thoughts.corrected(outcome, results)


def contents_of(results: dict[str, Any]) -> dict[str, bytes]:
    """Return the content of results.json and samples/TASK.jsonl.gz by name."""
    from lm_eval.utils import handle_non_serializable

    def encode(document: Any) -> bytes:
        return json.dumps(document, default=handle_non_serializable, ensure_ascii=False).encode()

    contents = {"results.json": encode({key: value for key, value in results.items() if key != "samples"})}
    for task, rows in results.get("samples", {}).items():
        # mtime=0, so that the same samples give the same bytes
        contents[f"samples/{task}.jsonl.gz"] = gzip.compress(b"\n".join(encode(row) for row in rows) + b"\n", mtime=0)
    return contents


def scores_of(results: dict[str, Any]) -> tuple[list[Score], dict[str, str]]:
    """Return all metrics with filter and standard error, and for each missing metric the reason.

    The error of a group is lm_eval's (0.4.13). It pools those of the subtasks, with the subtasks as given and their
    documents as independent.

    Raise EvaluationFailed if lm_eval returned no number at all.
    """
    scores: list[Score] = []
    missing: dict[str, str] = {}
    # Tasks of a group that has no score of its own are listed without a group.
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
                missing[f"{task}-{metric},{filter_name}"] = f"lm_eval returned {value!r}"
                continue
            if is_placeholder(metric, value):
                if metric == BYPASS:
                    missing[f"{task}-{metric},{filter_name}"] = NOT_SCORED
                continue
            rows = (row for row in results.get("samples", {}).get(task, ()) if row.get("filter") == filter_name)
            clustered = clustered_error(rows, metric, value)
            better = results.get("higher_is_better", {}).get(task, {}).get(metric)
            scores.append(
                Score(
                    task=task,
                    group=parent.get(task),
                    metric=metric,
                    filter=filter_name,
                    value=float(value),
                    stderr=clustered[0] if clustered else float(stderr) if _is_number(stderr) else None,
                    clusters=clustered[1] if clustered else None,
                    higher_is_better=better,
                )
            )
    if not scores:
        raise EvaluationFailed(f"lm_eval returned no number: {missing or 'no metric at all'}")
    return scores, missing


def is_placeholder(metric: str, value: float) -> bool:
    """Return whether lm_eval (0.4.13) prints ``value`` in place of a score.

    The metric `BYPASS` is always 999. RULER's metrics are named by the length of the prompt, and are -1 for lengths
    that were not requested; they are not missing.
    """
    return metric == BYPASS or (metric.isdecimal() and value == -1)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def coverage_of(results: dict[str, Any]) -> Coverage:
    """Return the number of documents that should have a score, and the number that have one."""
    counts = results.get("n-samples", {})
    scored = sum(len({row["doc_id"] for row in rows}) for rows in results["samples"].values())
    return Coverage(attempted=sum(count["effective"] for count in counts.values()), scored=scored)


def examples_of(results: dict[str, Any]) -> dict[str, str]:
    """Return the number of few-shot examples that lm_eval used. It ignores num_fewshot for a task that fixes 0."""
    numbers = sorted(set(results.get("n-shot", {}).values()))
    return {"prompt:num_fewshot": ",".join(map(str, numbers))} if numbers else {}
