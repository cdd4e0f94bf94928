"""Judge sampled outputs against reference outputs with alpaca_eval.

This project's own client makes the requests. alpaca_eval's client gives up on any error other than a rate limit, and
stores a failed request as an answer.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from halos_eval.checkpoints.weights import short_name
from halos_eval.config.judge import Judge, load_judge
from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.data import prompts
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, EvaluationFailed, JudgeRefused
from halos_eval.stages.identity import Job
from halos_eval.stages.judge.alpaca_eval import TooFewReadError, evaluate_pairs
from halos_eval.stages.judge.answers import Answers
from halos_eval.stages.judge.client import Completions, unreadable
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.options import JudgeConfig, judge_identity, timeout_of
from halos_eval.stages.judge.swapped import BOTH_ORDERS, FLIP_RATE, FLIPS, flips
from halos_eval.stages.run import Outcome, run
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import CheckpointRef, Coverage, Record, Score, Usage, read_record, readable_record

log = logging.getLogger(__name__)

# alpaca_eval's figure -> (our metric, the figure that is its standard error)
METRICS = {
    "win_rate": "standard_error",
    "length_controlled_winrate": "lc_standard_error",
    "discrete_win_rate": None,
}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
NO_LENGTH_CONTROL = "length control is defined for AlpacaEval's own 805 instructions only"


def judge(config: JudgeConfig) -> Record:
    """Run the stage. Raise BadInput, DataUnavailable, JudgeRefused, Incomplete, StoreError, EvaluationFailed."""
    rows, digest = _read_outputs(config.outputs)
    sampled = read_record(layout.record_beside(config.outputs))
    if sampled and sampled.files.get(Path(config.outputs).name) == digest:
        checkpoint, outputs = sampled.checkpoint, sampled.fingerprint
    else:
        # HALOs' sampler writes the model's path as the generator.
        name = config.name or short_name(str(rows[0].get("generator") or Path(config.outputs).stem))
        checkpoint, outputs = CheckpointRef(name=name, location=config.outputs, digest=digest), digest
    manifest = config.load_manifest()
    annotator = load_judge(config.judge)
    identity = judge_identity(annotator, config.reference, outputs, checkpoint, manifest, config.swap)
    job = identity.at(filesystem.join(config.output_dir, layout.RECORD))
    force = config.force and not _forced_already(job.record, config)
    again = (config.force_id or "again") if force else None
    judged, _ = readable_record(job.record)
    if judged and judged.provenance.inputs.get("outputs_sha256") != digest:
        force = True  # the same settings have produced other outputs since
    config = config.model_copy(update={"force": force})
    return run(job, config, lambda: _work(config, rows, digest, job, manifest, again))


def _forced_already(record: str, config: JudgeConfig) -> bool:
    """Return whether the record is that of the plan which forces this run: Airflow retries a pod that it lost."""
    found, _ = readable_record(record)
    return bool(config.force_id and found and found.provenance.config.get("force_id") == config.force_id)


def _read_outputs(url: str) -> tuple[list[dict[str, Any]], str]:
    try:
        data = filesystem.read_bytes(url)
    except FileNotFoundError as error:
        raise BadInput(f"{url} not found. Run `halos-eval sample`, which writes it") from error
    try:
        rows = json.loads(data)
    except ValueError as error:
        raise BadInput(f"{url} is not valid JSON ({error}); expected a file that `halos-eval sample` wrote") from error
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{url} does not contain outputs; expected a non-empty list")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("instruction", "output")):
            raise BadInput(
                f"{url}: item {number} is invalid; expected an object with the strings 'instruction' and 'output'"
            )
        for key in ("instruction", "output"):
            if lone := LONE_SURROGATE.search(row[key]):
                raise BadInput(
                    f"{url}: {key} of item {number} has half a character (\\u{ord(lone[0]):04x}), which no endpoint "
                    "accepts. Replace it, or sample the output again"
                )
    return rows, digest_bytes(data)


def _pair(rows: list[dict[str, Any]], reference: prompts.PromptSet, url: str) -> list[dict[str, Any]]:
    """Return the outputs for the reference's instructions, one each. Skip outputs for other instructions.

    Raise BadInput if an instruction has no output, which alpaca_eval would silently drop, or several.
    """
    wanted = {row["instruction"] for row in reference.rows}
    paired = [row for row in rows if row["instruction"] in wanted]
    given = Counter(row["instruction"] for row in paired)
    if len(given) != len(paired):
        text, number = given.most_common(1)[0]
        raise BadInput(
            f"{url} has several outputs for one instruction ({number} for {text[:80]!r}); expected one. "
            "Keep one sample per prompt (sample_id 0)"
        )
    if missing := len(wanted - given.keys()):
        raise BadInput(f"{url} has no output for {missing} of {len(wanted)} reference instructions. Sample them first")
    if len(rows) > len(paired):
        log.info("skipped %d outputs for instructions that are not in the reference", len(rows) - len(paired))
    return paired


def _work(
    config: JudgeConfig,
    rows: list[dict[str, Any]],
    digest: str,
    job: Job,
    manifest: Manifest | None,
    again: str | None,
) -> Outcome:
    began = time.monotonic()
    judge = load_judge(config.judge)
    endpoint = Endpoint.from_environment(judge.client)
    reference = prompts.load(config.reference, "reference", manifest)
    rows = _pair(rows, reference, config.outputs)
    controlled = config.reference == ALPACA_EVAL
    inputs = reference.inputs("reference") | {
        "outputs_sha256": digest,
        "generator": str(rows[0].get("generator", "")),
        "judge_model": judge.model,
        "endpoint": endpoint.place,
    }
    calibration = None
    if controlled:
        _, calibration = prompts.locate(ALPACA_EVAL, "calibration", manifest)
        inputs["calibration_revision"] = str(calibration)
    loaded = time.monotonic()
    answers = Answers(config.answers or filesystem.join(config.output_dir, "answers"), again)
    completions = Completions(endpoint, judge, answers, config.concurrency, timeout_of(config, judge))
    try:
        figures, annotations = evaluate_pairs(
            judge, rows, reference, completions, calibration, job.checkpoint.name, config.swap
        )
    except TooFewReadError as error:
        raise _no_judgement(completions, judge, error.read) from None
    superfluous = answers.finish()
    if completions.snapshots:
        inputs["judge_snapshots"] = ", ".join(sorted(completions.snapshots))
    if len(completions.snapshots) > 1:
        log.warning("several versions of the judge answered: %s", inputs["judge_snapshots"])
    prompt_tokens, completion_tokens = completions.tokens()
    data = (json.dumps(annotations, indent=1, ensure_ascii=False) + "\n").encode()
    filesystem.delete(job.record)  # an older record must not refer to the new file
    filesystem.write_bytes(filesystem.join(config.output_dir, "annotations.json"), data)
    scores, missing = _scores(figures, len(reference.rows), completions)
    details = {"avg_length": float(figures["avg_length"])}
    if config.swap:
        flipped, both = flips(annotations)
        details |= {FLIPS: flipped, BOTH_ORDERS: both}
        if both:
            scores.append(_flip_rate(flipped, both))
        else:
            missing[f"{ALPACA_EVAL}-{FLIP_RATE}"] = "the judge was asked about no pair: all outputs are equal"
    return Outcome(
        scores=tuple(scores),
        missing=missing,
        coverage=Coverage(attempted=len(reference.rows), scored=int(figures["n_total"])),
        details=details,
        usage=Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            price_usd=completions.price_usd(),
            load_seconds=loaded - began,
            work_seconds=time.monotonic() - loaded,
        ),
        files={"annotations.json": digest_bytes(data)},
        inputs=inputs,
        parts=superfluous,
    )


def _no_judgement(completions: Completions, judge: Judge, read: int) -> JudgeRefused | EvaluationFailed:
    if read:
        reason = f"; it refused {len(completions.refused)}: {completions.refused[0]}" if completions.refused else ""
        if completions.cut:
            reason += f"; {completions.cut} ended without text at the limit of tokens, which hidden reasoning uses up"
        return EvaluationFailed(
            f"{judge.fn_completion_parser} could parse only {read} of {completions.asked} answers of "
            f"{judge.model}{reason}. The answers are kept. Fix the judge, "
            "or request new answers with --force"
        )
    if len(completions.refused) == completions.asked:
        return JudgeRefused(
            f"every request was refused: {completions.refused[0]}. Check the judge's model_name and request options"
        )
    return EvaluationFailed(unreadable(judge, completions.received))


def _flip_rate(flipped: int, both: int) -> Score:
    return Score(task=ALPACA_EVAL, metric=FLIP_RATE, value=100 * flipped / both, higher_is_better=False)


def _scores(figures: dict[str, Any], expected: int, completions: Completions) -> tuple[list[Score], dict[str, str]]:
    scores: list[Score] = []
    missing: dict[str, str] = {}
    for metric, error in METRICS.items():
        value = figures.get(metric)
        if value is None or not math.isfinite(value):
            missing[f"{ALPACA_EVAL}-{metric}"] = NO_LENGTH_CONTROL if value is None else f"alpaca_eval returned {value}"
            continue
        stderr = figures.get(error) if error else None
        scores.append(
            Score(
                task=ALPACA_EVAL,
                metric=metric,
                value=value,
                stderr=float(stderr) if stderr is not None and math.isfinite(stderr) else None,
                higher_is_better=True,
            )
        )
    unread = expected - int(figures["n_total"])
    if unread:
        reason = f" (refused: {completions.refused[0]})" if completions.refused else ""
        missing[f"{ALPACA_EVAL}-n_total"] = f"{unread} of {expected} answers could not be read{reason}"
    return scores, missing
