"""Results in the schema of Every Eval Ever: one document for each part of a suite on a checkpoint.

https://github.com/evaleval/every_eval_ever has the schema. A second export of the same results writes the same files.
Trials and results that are not current are left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.reports.remarks import limit_of
from halos_eval.reports.results import judge_of, real_scores, shortfalls
from halos_eval.reports.shown import Shown, ShownParts, shown
from halos_eval.reports.suite_rows import SuiteRows
from halos_eval.reports.uncertainty import PERCENT, at_bound, bound_interval, wilson
from halos_eval.stages.judge.swapped import BOTH_ORDERS, FLIP_RATE
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, Score

log = logging.getLogger(__name__)

SCHEMA = "0.3.0"
DATASET = "dataset:"
"""Beginning of the names of data sets among a record's inputs."""
COMMIT = re.compile("[0-9a-f]{40}")
LIBRARIES = {"harness": "lm-eval", "judge": "alpaca-eval"}
NOT_IN_A_FOLDER = re.compile(r"[^A-Za-z0-9_.-]")


def documents(root: str, suite: str, organization: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and document of each current result of a suite, of all its checkpoints.

    A checkpoint is called ORGANIZATION/NAME. Results that are left out are logged with the reason. Raise BadInput if
    the suite has no plan, or StoreError.
    """
    plans = filesystem.entries(filesystem.join(layout.plans_url(root), suite))
    names = sorted(name.removesuffix(".json").replace("__", "/") for name in plans if name.endswith(".json"))
    if not names:
        raise BadInput(f"{root} contains no plan of {suite}: nothing has been evaluated there yet")
    rows = SuiteRows(root, suite)
    for name in names:
        try:
            found = shown(root, suite, name, rows)
        except HalosEvalError as error:
            log.warning("%s is left out: %s", name, error)
            continue
        for part in found.parts:
            record, why = part.record, _why_not(part)
            if record is None or why:
                log.warning("%s, %s is left out: %s", name, part.part, why)
            elif record.stage != "sample":
                yield _path(suite, part, record, organization), document(suite, found, part, record, organization)


def _why_not(part: Shown) -> str:
    """Return why a part has no document; empty if it has one, or has no scores of its own (samples)."""
    if part.record and limit_of(part.record):
        return f"a trial, limit {limit_of(part.record)}"
    if part.record and not part.reason and part.record.stage != "sample" and not real_scores(part.record):
        return "; ".join(map(str, shortfalls(part.record))) or "no score"
    return part.reason


def document(suite: str, found: ShownParts, part: Shown, record: Record, organization: str) -> dict[str, Any]:
    """Return the document of one result."""
    ended = str(int(record.provenance.ended.timestamp()))
    model = f"{organization}/{layout.folder_name(found.checkpoint)}"
    library = LIBRARIES[record.stage]
    version = record.identity.get("tools", {}).get(library, "unknown")
    answered = _answered(found, record)
    tools = answered.get("tools", {})
    details = {"weights": record.checkpoint.digest} | {f"tag:{key}": value for key, value in found.tags.items()}
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"{part.part}/{model}/{ended}",
        "evaluation_timestamp": ended,
        "retrieved_timestamp": ended,  # of the record, so that a second export writes the same
        "source_metadata": {
            "source_name": "halos-eval",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": "first_party",
            "additional_details": {"suite": suite, "fingerprint": record.fingerprint},
        },
        "eval_library": {"name": library.replace("-", "_"), "version": version},
        "model_info": {
            "name": found.checkpoint,
            "id": model,
            "developer": organization,
            "inference_engine": {"name": "vLLM", "version": tools["vllm"]} if "vllm" in tools else {},
            "additional_details": details | {"deployment_type": "self_deployed", "model_availability": "unknown"},
        },
        "evaluation_results": [
            _result(record, score, ended, answered.get("settings", {})) for score in real_scores(record)
        ],
    }


def _answered(found: ShownParts, record: Record) -> dict[str, Any]:
    """Return the identity of the stage in which the model answered; {} if it is unknown. A judge has read samples."""
    if record.stage != "judge":
        return record.identity
    read = record.identity.get("inputs", {}).get("outputs")
    return next((one.record.identity for one in found.parts if one.record and one.record.fingerprint == read), {})


def _result(record: Record, score: Score, ended: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    name = score.task if score.filter == "none" else f"{score.task}/{score.filter}"
    extra = {"filter": score.filter} | ({"group": score.group} if score.group else {})
    extra |= {"judge": judge} if (judge := judge_of(record)) else {}
    extra |= {} if score.higher_is_better is not None else {"direction": "not stated by the tool"}
    metric: dict[str, Any] = {
        "metric_name": score.metric,
        "lower_is_better": score.higher_is_better is False,
        "additional_details": extra,
    }
    if score.metric in PERCENT | {FLIP_RATE}:
        metric |= {"metric_unit": "percent", "score_type": "continuous", "min_score": 0, "max_score": 100}
    return {
        "evaluation_result_id": f"{score.task}/{score.metric},{score.filter}",
        "evaluation_name": name,
        "source_data": _source(record, score.task),
        "evaluation_timestamp": ended,
        "metric_config": metric,
        "score_details": {"score": score.value, "uncertainty": _uncertainty(record, score)},
        "generation_config": {"additional_details": {key: json.dumps(value) for key, value in settings.items()}},
    }


def _uncertainty(record: Record, score: Score) -> dict[str, Any]:
    """Return the standard error, or the interval of a share that has no valid error: at its bound, or of flips."""
    if score.metric == FLIP_RATE and score.task == ALPACA_EVAL:
        both = round(record.details[BOTH_ORDERS])
        low, high = wilson(score.value / 100, both)
        return {"num_samples": both, "confidence_interval": _wilson((100 * low, 100 * high))}
    one_task = len({one.task for one in record.scores if one.group is None}) == 1 and score.group is None
    n = record.coverage.scored if one_task else None
    found: dict[str, Any] = {"num_samples": n} if n else {}
    if interval := bound_interval(score.metric, score.value, score.stderr, score.clusters or n):
        found["confidence_interval"] = _wilson(interval)
    elif score.stderr is not None and not at_bound(score.value, score.stderr):
        found["standard_error"] = {"value": score.stderr}
    return found


def _wilson(interval: tuple[float, float]) -> dict[str, Any]:
    return {"lower": interval[0], "upper": interval[1], "confidence_level": 0.95, "method": "Wilson"}


def _source(record: Record, task: str) -> Mapping[str, Any]:
    """Return what the task reads: a data set of the hub with its commit. The name of another one may be a path."""
    inputs = record.provenance.inputs
    found = {key.removeprefix(DATASET): value for key, value in inputs.items() if key.startswith(DATASET)}
    name, revision = next(iter(found.items()), ("", ""))
    if task == ALPACA_EVAL or len(found) != 1 or name.startswith("/") or not COMMIT.fullmatch(revision):
        return {"dataset_name": task, "source_type": "other"}
    source = {"dataset_name": name, "source_type": "hf_dataset", "additional_details": {"revision": revision}}
    words = name.split("/")
    if len(words) == 2:  # the repository A/B, or the configuration B of an old repository that has no owner
        return source
    return source | {"hf_repo": "/".join(words[:2])}  # the rest is the configuration


def _path(suite: str, part: Shown, record: Record, organization: str) -> str:
    """Return data/COLLECTION/DEVELOPER/MODEL/UUID.json, as the receiver's validator expects it."""
    words = [suite, part.part, organization, record.checkpoint.name, record.fingerprint, str(record.provenance.ended)]
    own = UUID(bytes=hashlib.sha256("\n".join(words).encode()).digest()[:16], version=4)
    collection = NOT_IN_A_FOLDER.sub("-", part.part)
    return f"data/{collection}/{organization}/{layout.folder_name(record.checkpoint.name)}/{own}.json"
